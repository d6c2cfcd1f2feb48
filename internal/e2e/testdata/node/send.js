// Sends COUNT events with @fluent-org/logger in one of its modes, with acks,
// and exits with 1 unless every event was acked.
const { FluentClient } = require("@fluent-org/logger");

const [host, port, count, mode] = process.argv.slice(2);

async function main() {
  const client = new FluentClient("node", {
    eventMode: mode,
    ack: { ackTimeout: 10000 },
    socket: { host, port: Number(port), timeout: 10000 },
    flushInterval: 20,
    sendQueueIntervalFlushLimit: { length: 50 },
  });
  const sent = [];
  for (let n = 0; n < Number(count); n++) {
    sent.push(client.emit(mode, { n, text: "nœud " + n, big: 1.5, nested: { a: [1, null, true] } }));
  }
  await Promise.all(sent);
  await client.disconnect();
}

main().catch((err) => {
  console.error(err);
  process.exit(1);
});
