// The queues as tanks, in the order in which data passes them.
import { age, amount, attribute, count, el, show, write } from "./text.js";

const meaning = {
  syn: "half-open connections",
  accept: "awaiting accept(2)",
  connections: "open connections",
  socket: "unread in the kernel",
  memory: "read, not yet on disk",
  commit: "awaiting fdatasync",
  buffer: "on disk, undelivered",
  output: "to be delivered",
};

const narrowest = 136; // px of a tank
const minute = 60; // seconds for which a spill counts as recent
const brim = 0.8;

export class Tanks {
  constructor(list) {
    this.list = list;
    this.tanks = new Map();
    new ResizeObserver(() => this.arrange()).observe(list);
  }

  // arrange keeps the way through a source, and through each match, on one row where
  // there is room for it: a match begins a new row if its tanks do not fit behind
  // those before.
  arrange() {
    const room = Math.max(1, Math.floor(this.list.clientWidth / narrowest));
    const ways = [];
    for (const tank of this.list.children) {
      if (ways.length === 0 || tank.dataset.begins === "true") ways.push([]);
      ways.at(-1).push(tank);
    }
    let columns = 1;
    let row = 0;
    for (const way of ways) {
      const begins = row > 0 && row + way.length > room;
      row = (begins ? 0 : row) + way.length;
      columns = Math.max(columns, row);
      way[0].classList.toggle("begins", begins);
    }
    this.list.style.setProperty("--columns", Math.min(columns, room));
  }

  clear() {
    this.tanks.clear();
    this.list.replaceChildren();
  }

  draw(queues, now) {
    const seen = new Set();
    queues.forEach((q, i) => {
      const id = q.queue + "\n" + q.name;
      seen.add(id);
      let tank = this.tanks.get(id);
      if (tank === undefined) {
        tank = new Tank(q);
        this.tanks.set(id, tank);
      }
      if (this.list.children[i] !== tank.item) this.list.insertBefore(tank.item, this.list.children[i] ?? null);
      tank.draw(q, now);
    });
    for (const [id, tank] of this.tanks) {
      if (!seen.has(id)) {
        tank.item.remove();
        this.tanks.delete(id);
      }
    }
    const order = [...this.list.children].length + "\n" + queues.map((q) => q.queue).join();
    if (order !== this.order) {
      this.order = order;
      this.arrange();
    }
  }
}

class Tank {
  constructor(q) {
    this.level = el("div", { class: "level" });
    this.peak = el("div", { class: "mark-peak" });
    this.minute = el("div", { class: "mark-minute" });
    this.limit = el("span", { class: "limit" });
    this.vessel = el("div", { class: "vessel", role: "meter", "aria-valuemin": 0 }, this.level, el("div", { class: "brim" }), this.peak, this.minute, this.limit, el("div", { class: "over" }));
    this.depth = el("p", { class: "depth" });
    this.facts = el("p", { class: "facts" });
    this.drops = el("p", { class: "drops" });
    this.note = el("p", { class: "note" });
    this.item = el("li", { class: "tank", "data-begins": q.queue === "syn" || q.queue === "commit" },
      el("h3", {}, q.queue), el("p", { class: "what" }, meaning[q.queue] ?? ""), el("p", { class: "name", title: q.name }, q.name),
      this.vessel, this.depth, this.facts, this.drops, this.note);
    this.dropped = []; // [time, count], about a minute of it
  }

  draw(q, now) {
    const recent = this.recentDrops(q.dropped, now);
    const limited = (q.capacity ?? 0) > 0;
    const minutePeak = q.peak_minute ?? 0;
    // Without a capacity there is no full: the highest that was is the scale.
    const scale = limited ? q.capacity : Math.max(q.peak, q.depth, 1);
    const share = (n) => Math.min(1, n / scale);
    const full = limited ? q.depth / q.capacity : 0;

    height(this.level, "--fill", share(q.depth), "height");
    this.level.classList.toggle("empty", q.depth === 0);
    height(this.peak, "--at", share(q.peak), "bottom");
    height(this.minute, "--at", share(minutePeak), "bottom");
    this.peak.hidden = q.peak === 0;
    this.minute.hidden = minutePeak === 0;
    const c = this.item.classList;
    c.toggle("free", !limited);
    c.toggle("high", full >= brim);
    c.toggle("spilled", q.dropped > 0);
    c.toggle("spilling", recent > 0);

    write(this.limit, limited ? amount(q.capacity, q.unit) : "no limit");
    write(this.depth, amount(q.depth, q.unit));
    let facts = `peak ${amount(q.peak, q.unit)}`;
    if (minutePeak > 0) facts += `, last minute ${amount(minutePeak, q.unit)}`;
    if (q.oldest_seconds > 0) facts += `, oldest ${age(q.oldest_seconds)}`;
    write(this.facts, facts);
    let drops = q.dropped > 0 ? `${count(q.dropped)} dropped` : "";
    if (recent > 0 && recent < q.dropped) drops += `, ${count(recent)} in the last minute`;
    show(this.drops, drops);
    show(this.note, q.note ?? "");

    attribute(this.vessel, "aria-label", `${q.queue} ${q.name}: ${meaning[q.queue] ?? ""}`);
    attribute(this.vessel, "aria-valuemax", scale);
    attribute(this.vessel, "aria-valuenow", Math.min(q.depth, scale));
    attribute(this.vessel, "aria-valuetext", `${amount(q.depth, q.unit)}${limited ? ` of ${amount(q.capacity, q.unit)}` : ", no limit"}, ${facts}${drops ? ", " + drops : ""}`);
  }

  // recentDrops is how many were dropped in the last minute, as far as this page
  // has watched.
  recentDrops(dropped, now) {
    this.dropped.push([now, dropped]);
    while (this.dropped.length > 1 && this.dropped[1][0] <= now - minute) this.dropped.shift();
    return dropped - this.dropped[0][1];
  }
}

// height places a part of a tank; on a narrow screen the style sheet takes the
// custom property for the width instead.
function height(e, property, share, side) {
  const text = (100 * share).toFixed(2) + "%";
  e.style.setProperty(property, text);
  e.style.setProperty(side, text);
}
