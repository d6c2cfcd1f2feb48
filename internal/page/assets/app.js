// The page: one frame a second from /api/stream, drawn in place.
import { Buffers } from "./buffers.js";
import { Charts } from "./charts.js";
import { Connection } from "./connection.js";
import { Notices } from "./notices.js";
import { Balance, Outputs } from "./outputs.js";
import { Senders } from "./senders.js";
import { Tanks } from "./tanks.js";
import { age, bytes, clock, count, counts, el, sum, write } from "./text.js";

const $ = (id) => document.getElementById(id);
const tanks = new Tanks($("tanks"));
const charts = new Charts($("charts"));
const buffers = new Buffers($("buffer-table"));
const outputs = new Outputs($("output-table"));
const balance = new Balance($("balance-table"));
const senders = new Senders($("sender-table"), $("senders-known"), $("senders-none"));
const notices = new Notices({ list: $("notices"), announce: $("announce"), findings: $("findings"), over: $("over"), overSection: $("lately-section") });
let process; // which weir the figures are of

new Connection("/api/stream", {
  history: (points) => charts.history(points),
  frame,
  live() {
    if (document.body.classList.contains("stale")) write($("announce"), "Connected to weir again");
    document.body.classList.remove("stale");
    $("connection").dataset.state = "live";
    write($("connection"), "live");
  },
  lost(since, ended) {
    if (!document.body.classList.contains("stale")) write($("announce"), "No figures from weir any more");
    document.body.classList.add("stale");
    $("connection").dataset.state = "lost";
    write($("connection"), process === undefined ? "no connection to weir" : `${ended ? "weir has stopped" : "connection lost"} since ${clock(since)} (${age((Date.now() - since) / 1000).replace(/\.\d/, "")})`);
    document.title = "weir – connection lost";
  },
});

function frame({ snapshot: s, point }) {
  const now = Date.parse(s.now) / 1000;
  const id = `${s.pid} ${s.started}`;
  if (process !== undefined && process.id !== id) {
    if (process.version !== s.version) return location.reload(); // another version has another page
    tanks.clear(); // its counters began anew
  }
  process = { id, version: s.version };
  const ready = (s.problems ?? []).length === 0;
  write($("process"), `${location.hostname}, version ${s.version}, pid ${s.pid}, up ${age(now - Date.parse(s.started) / 1000).replace(/\.\d/, "")}, ${ready ? "ready" : "not ready"}`);
  notices.draw(s);
  const on = $("notices").childElementCount;
  document.title = on > 0 ? `(${on}) weir` : "weir";
  drawListeners(s.listeners ?? []);
  tanks.draw(s.queues ?? [], now);
  if (point) charts.add(point);
  buffers.draw(s);
  outputs.draw(s, now);
  balance.draw(s);
  senders.draw(s.senders, s.senders_known, now);
  drawTotals(s);
}

function drawListeners(listeners) {
  const list = $("listeners");
  const text = JSON.stringify(listeners.map((l) => [l.name, l.backlog_asked, l.backlog_granted]));
  if (list.dataset.drawn === text) return;
  list.dataset.drawn = text;
  list.replaceChildren(...listeners.map((l) => el("li", { class: l.backlog_granted < l.backlog_asked ? "short" : "" },
    el("b", {}, l.name), " backlog ", el("b", {}, count(l.backlog_asked)), " asked, ", el("b", {}, count(l.backlog_granted)), " granted")));
}

function drawTotals(s) {
  const t = s.traffic;
  const rows = [
    ["Received", `${count(sum(t.events))} events in ${count(sum(t.messages))} messages, ${bytes(sum(t.bytes))}`],
    ["By mode", counts(t.messages)],
    ["Acks", count(t.acks)],
    ["Heartbeats", counts(t.heartbeats)],
    ["Connections", counts(t.connections)],
    ...(s.listeners ?? []).filter((l) => l.tcp_connections).map((l) => [s.listeners.length > 1 ? `TCP states, ${l.name}` : "TCP states now", counts(l.tcp_connections)]),
    ["Messages refused", counts(t.refused_messages)],
    ["Messages not valid", counts(t.invalid_messages)],
    ["Kernel, all listeners", counts(s.kernel)],
  ];
  const list = $("totals");
  rows.forEach(([name, text], i) => {
    const row = list.children[i] ?? list.appendChild(el("div", {}, el("dt"), el("dd")));
    write(row.children[0], name);
    write(row.children[1], text);
  });
  while (list.children.length > rows.length) list.lastElementChild.remove();
}
