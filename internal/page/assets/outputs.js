// Outputs with what waits for them, and the sum of promise P5.
import { age, bytes, count, counts, sum } from "./text.js";
import { fill, number } from "./table.js";

export class Outputs {
  constructor(table) {
    this.body = table.tBodies[0];
  }

  draw(snapshot, now) {
    const oldest = new Map((snapshot.queues ?? []).filter((q) => q.queue === "output").map((q) => [q.name, q.oldest_seconds]));
    const buffers = (snapshot.queues ?? []).filter((q) => q.queue === "buffer");
    const ages = new Map(buffers.map((q) => [q.name, q.oldest_seconds]));
    fill(this.body, snapshot.outputs ?? [], (o) => o.id, (o) => {
      const old = oldest.get(o.id) || ages.get(o.id) || (buffers.length === 1 ? buffers[0].oldest_seconds : 0);
      const next = o.next_retry ? Date.parse(o.next_retry) / 1000 - now : null;
      return [
        { text: o.id },
        { text: o.type },
        { text: o.match, class: "long" },
        number(o.delivered_events, count(o.delivered_events) + " events"),
        number(o.pending_bytes, bytes(o.pending_bytes) + (o.capacity > 0 ? " of " + bytes(o.capacity) : "")),
        number(o.pending_chunks, count(o.pending_chunks)),
        number(o.pending_bytes > 0 ? old : 0, o.pending_bytes > 0 && old > 0 ? age(old) : "–"),
        number(o.retries, count(o.retries), "warn"),
        next === null ? { text: "–", class: "zero" } : { text: `retry ${o.retry_step} ` + (next > 0 ? "in " + age(next) : "now"), class: "warn" },
        { text: o.last_error || "–", class: o.last_error ? "wrap" + (next === null ? "" : " bad") : "zero" },
      ];
    });
  }
}

export class Balance {
  constructor(table) {
    this.body = table.tBodies[0];
  }

  draw(snapshot) {
    fill(this.body, snapshot.balance ?? [], (b) => b.output + "\n" + b.match, (b) => {
      const dropped = sum(b.dropped);
      const off = b.recovered + b.received - b.delivered - b.buffered - dropped;
      return [
        { text: b.output },
        number(b.recovered, count(b.recovered)),
        number(b.received, count(b.received)),
        number(b.delivered, count(b.delivered)),
        number(b.buffered, count(b.buffered)),
        number(dropped, dropped === 0 ? "0" : counts(b.dropped), "bad"),
        off === 0 ? { text: "even", class: "good" } : { text: `${count(Math.abs(off))} on their way`, class: "warn" },
      ];
    });
  }
}
