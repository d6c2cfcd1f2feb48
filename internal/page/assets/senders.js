// The senders, by address, sorted as the reader likes. A frame lists some of them;
// if there are more, weir is asked for the first ones in the order chosen.
import { age, bytes, count, counts, el, rate, sum, write } from "./text.js";
import { fill, number } from "./table.js";

const shown = 20;

const columns = [
  { name: "Address", by: "address", ascending: true, value: (s) => s.address, cell: (s) => ({ text: s.address }) },
  { name: "Open", by: "open", value: (s) => s.open_connections, cell: (s) => number(s.open_connections, count(s.open_connections)) },
  { name: "Connections/s", by: "connections_per_second", value: (s) => s.connections_per_second, cell: (s) => number(s.connections_per_second, rate(s.connections_per_second)) },
  { name: "Heartbeats/s", by: "heartbeats_per_second", value: (s) => s.heartbeats_per_second, cell: (s) => number(s.heartbeats_per_second, rate(s.heartbeats_per_second)) },
  { name: "Heartbeats", by: "heartbeats", value: (s) => sum(s.heartbeats), cell: (s) => number(sum(s.heartbeats), counts(s.heartbeats)) },
  { name: "Messages", by: "messages", value: (s) => s.messages, cell: (s) => number(s.messages, count(s.messages)) },
  { name: "Events", by: "events", value: (s) => s.events, cell: (s) => number(s.events, count(s.events)) },
  { name: "Bytes", by: "bytes", value: (s) => s.bytes, cell: (s) => number(s.bytes, bytes(s.bytes)) },
  { name: "Acks", by: "acks", value: (s) => s.acks, cell: (s) => number(s.acks, count(s.acks)) },
  { name: "Resends", by: "resends", value: (s) => s.resends, cell: (s) => number(s.resends, count(s.resends), "warn") },
  { name: "Invalid", by: "invalid", value: (s) => s.invalid_messages, cell: (s) => number(s.invalid_messages, count(s.invalid_messages), "bad") },
  { name: "Invalid events", by: "invalid_events", value: (s) => s.invalid_events, cell: (s) => number(s.invalid_events, count(s.invalid_events), "bad") },
  { name: "Failed handshakes", by: "handshake_failures", value: (s) => s.handshake_failures, cell: (s) => number(s.handshake_failures, count(s.handshake_failures), "bad") },
  { name: "Seen", by: "last_seen", value: (s) => Date.parse(s.last_seen), cell: (s, now) => ({ text: age(now - Date.parse(s.last_seen) / 1000) + " ago", class: "n" }) },
  { name: "Uses", value: (s) => (s.features ?? []).join(", "), cell: (s) => ({ text: (s.features ?? []).join(", "), class: "long" }) },
];

export class Senders {
  constructor(table, known, none) {
    this.table = table;
    this.body = table.tBodies[0];
    this.known = known;
    this.none = none;
    this.by = columns.findIndex((c) => c.name === "Heartbeats/s");
    this.descending = true;
    this.heads = columns.map((c, i) => {
      const button = el("button", { type: "button" }, c.name);
      button.addEventListener("click", () => this.sort(i));
      return el("th", { scope: "col", class: i > 0 && i < columns.length - 1 ? "n" : "" }, button);
    });
    table.tHead.replaceChildren(el("tr", {}, ...this.heads));
    this.senders = [];
    this.ranked = undefined; // what weir answered: { by, senders }
    this.mark();
  }

  sort(column) {
    this.descending = column === this.by ? !this.descending : column > 0;
    this.by = column;
    this.mark();
    this.draw(this.senders, this.total, this.now);
  }

  // ask has one request under way at most; its answer is drawn with the next
  // frame. Without an answer the frame's own senders are sorted.
  async ask(by) {
    if (by === undefined || this.asking) return;
    this.asking = true;
    try {
      const answer = await fetch(`/api/senders.json?by=${by}&limit=${shown}`);
      if (answer.ok) this.ranked = { by, senders: (await answer.json()).senders };
    } catch {
      this.ranked = undefined; // the connection's state is shown by the stream
    } finally {
      this.asking = false;
    }
  }

  mark() {
    this.heads.forEach((th, i) => {
      if (i === this.by) th.setAttribute("aria-sort", this.descending ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    });
  }

  draw(senders, total, now) {
    this.senders = senders ?? [];
    this.total = total;
    this.now = now;
    const { by, ascending = false, value } = columns[this.by];
    const elsewhere = total > this.senders.length && by !== undefined && this.descending !== ascending;
    if (elsewhere) this.ask(by);
    const listed = elsewhere && this.ranked?.by === by ? this.ranked.senders : this.senders;
    const order = this.descending ? -1 : 1;
    const sorted = [...listed].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x !== y) return x < y ? -order : order;
      return a.address < b.address ? -1 : 1;
    }).slice(0, shown);
    fill(this.body, sorted, (s) => s.address, (s) => columns.map((c) => c.cell(s, now)));
    this.table.hidden = this.senders.length === 0;
    this.none.hidden = this.senders.length > 0;
    write(this.known, total > sorted.length ? `${count(sorted.length)} of ${count(total)} senders` : total > 0 ? `${count(total)} ${total === 1 ? "sender" : "senders"}` : "");
  }
}
