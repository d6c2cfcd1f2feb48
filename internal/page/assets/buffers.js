// Buffers: what lies in their chunks, and how they are written.
import { age, bytes, count } from "./text.js";
import { fill, number } from "./table.js";

const low = 0.05; // of the disk: the alert disk_low begins here

export class Buffers {
  constructor(table) {
    this.body = table.tBodies[0];
  }

  draw(snapshot) {
    const of = (list, name) => (list ?? []).find((x) => x.match === name) ?? {};
    fill(this.body, snapshot.buffers ?? [], (b) => b.name, (b) => {
      const damaged = of(snapshot.damaged, b.name);
      const quarantine = of(snapshot.quarantines, b.name);
      return [
        { text: b.name },
        number(b.bytes, `${bytes(b.bytes)} of ${bytes(b.limit)}`, b.bytes > 0.8 * b.limit ? "warn" : ""),
        number(b.oldest_seconds, b.oldest_seconds > 0 ? age(b.oldest_seconds) : "–"),
        number(b.chunks, count(b.chunks)),
        number(b.spare_files, count(b.spare_files)),
        number(b.commits, count(b.commits)),
        number(b.failed_commits, count(b.failed_commits), "bad"),
        some(b.recovered_events, "events"),
        some(b.dropped_chunks, "chunks", "bad"),
        kept(damaged.chunks, damaged.bytes, damaged.dropped, "chunks"),
        kept(quarantine.items, quarantine.bytes, quarantine.dropped, "items"),
        { text: b.durable ? (b.direct_io ? "O_DIRECT, fdatasync" : "page cache, fdatasync") : "no fdatasync", class: b.durable && b.direct_io ? "" : "warn" },
        number(b.disk_free, b.disk_size > 0 ? `${bytes(b.disk_free)} of ${bytes(b.disk_size)}` : "–", b.disk_free < low * b.disk_size ? "bad" : ""),
      ];
    });
  }
}

// some is a cell of a count with its unit, if there is any.
function some(n, unit, alarming) {
  return number(n, n === 0 ? "0" : `${count(n)} ${unit}`, alarming);
}

// kept is a cell of what was moved aside.
function kept(n = 0, size = 0, dropped = 0, unit) {
  const text = n === 0 ? "0" : `${count(n)} ${unit}, ${bytes(size)}`;
  return number(n + dropped, dropped > 0 ? `${text}; ${count(dropped)} dropped` : text, "warn");
}
