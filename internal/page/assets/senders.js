// The senders, by address, sorted as the reader likes.
import { age, bytes, count, counts, el, rate, sum, write } from "./text.js";
import { fill, number } from "./table.js";

const shown = 20;

const columns = [
  { name: "Address", value: (s) => s.address, cell: (s) => ({ text: s.address }) },
  { name: "Open", value: (s) => s.open_connections, cell: (s) => number(s.open_connections, count(s.open_connections)) },
  { name: "Connections/s", value: (s) => s.connections_per_second, cell: (s) => number(s.connections_per_second, rate(s.connections_per_second)) },
  { name: "Heartbeats/s", value: (s) => s.heartbeats_per_second, cell: (s) => number(s.heartbeats_per_second, rate(s.heartbeats_per_second)) },
  { name: "Heartbeats", value: (s) => sum(s.heartbeats), cell: (s) => number(sum(s.heartbeats), counts(s.heartbeats)) },
  { name: "Messages", value: (s) => s.messages, cell: (s) => number(s.messages, count(s.messages)) },
  { name: "Events", value: (s) => s.events, cell: (s) => number(s.events, count(s.events)) },
  { name: "Bytes", value: (s) => s.bytes, cell: (s) => number(s.bytes, bytes(s.bytes)) },
  { name: "Acks", value: (s) => s.acks, cell: (s) => number(s.acks, count(s.acks)) },
  { name: "Resends", value: (s) => s.resends, cell: (s) => number(s.resends, count(s.resends), "warn") },
  { name: "Invalid", value: (s) => s.invalid_messages, cell: (s) => number(s.invalid_messages, count(s.invalid_messages), "bad") },
  { name: "Failed handshakes", value: (s) => s.handshake_failures, cell: (s) => number(s.handshake_failures, count(s.handshake_failures), "bad") },
  { name: "Seen", value: (s) => Date.parse(s.last_seen), cell: (s, now) => ({ text: age(now - Date.parse(s.last_seen) / 1000) + " ago", class: "n" }) },
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
    this.mark();
  }

  sort(column) {
    this.descending = column === this.by ? !this.descending : column > 0;
    this.by = column;
    this.mark();
    this.draw(this.senders, this.total, this.now);
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
    const value = columns[this.by].value;
    const order = this.descending ? -1 : 1;
    const sorted = [...this.senders].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x !== y) return x < y ? -order : order;
      return a.address < b.address ? -1 : 1;
    }).slice(0, shown);
    fill(this.body, sorted, (s) => s.address, (s) => columns.map((c) => c.cell(s, now)));
    this.table.hidden = this.senders.length === 0;
    this.none.hidden = this.senders.length > 0;
    write(this.known, total > sorted.length ? `${count(sorted.length)} of ${count(total)} senders` : total > 0 ? `${count(total)} senders` : "");
  }
}
