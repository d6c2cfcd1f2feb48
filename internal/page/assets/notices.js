// What needs attention: problems, backlogs that were not granted, alerts; what
// the doctor found; and what is over.
import { clock, el } from "./text.js";

export class Notices {
  constructor({ list, announce, findings, over, overSection }) {
    Object.assign(this, { list, announce, findings, over, overSection });
    this.said = new Set();
    this.drawn = new Map(); // by element: what is drawn there
  }

  draw(snapshot) {
    const on = notices(snapshot);
    this.redraw(this.list, on, (n) => el("div", { class: "notice" + (n.mild ? " mild" : "") },
      el("span", { class: "about" }, el("strong", {}, n.title), " ", n.text), mend(n.mend), since(n.since)));
    this.list.hidden = on.length === 0;
    this.say(on);

    const found = (snapshot.findings ?? []).filter((f) => f.severity !== "ok");
    this.redraw(this.findings, found, finding);
    if (found.length === 0) this.redraw(this.findings, ["none"], () => el("li", { class: "none" }, "Nothing that needs mending."));

    const over = (snapshot.alerts ?? []).filter((a) => a.until);
    this.redraw(this.over, over, (a) => el("li", {}, el("p", {}, el("span", { class: "severity" }, title(a.name)), `${a.subject}: ${a.message}`),
      el("p", { class: "why" }, `from ${clock(new Date(a.since))} to ${clock(new Date(a.until))}`)));
    this.overSection.hidden = over.length === 0;
  }

  redraw(parent, items, make) {
    const text = JSON.stringify(items);
    if (this.drawn.get(parent) === text) return;
    this.drawn.set(parent, text);
    parent.replaceChildren(...items.map(make));
  }

  // say tells screen readers of what is new and of what is over, once; figures
  // that change within a notice are not read out each second.
  say(on) {
    const now = new Map(on.map((n) => [n.key, `${n.title} ${n.text}`]));
    const lines = [];
    for (const [key, text] of now) if (!this.said.has(key)) lines.push(text);
    for (const key of this.said) if (!now.has(key)) lines.push(`Over: ${key}`);
    if (lines.length > 0) this.announce.textContent = lines.join(". ");
    this.said = new Set(now.keys());
  }
}

function notices(s) {
  const on = (s.alerts ?? []).filter((a) => !a.until);
  // Alerts are looked for each second; the first frame may be before that.
  const told = (name, subject) => on.some((a) => a.name === name && (subject === undefined || a.subject === subject));
  const list = [];
  if (!told("not_ready")) for (const p of s.problems ?? []) list.push({ key: p, title: "Not ready.", text: p });
  for (const l of s.listeners ?? []) {
    if (l.backlog_granted < l.backlog_asked && !told("backlog_short", l.name)) {
      list.push({
        key: `${title("backlog_short")} ${l.name}`, title: title("backlog_short") + ".", mend: l.mend,
        text: `${l.name}: backlog ${l.backlog_granted} of ${l.backlog_asked} asked` + (l.limited_by ? `, limited by ${l.limited_by}` : ""),
      });
    }
  }
  for (const a of on) {
    list.push({ key: `${title(a.name)} ${a.subject}`, title: title(a.name) + ".", text: a.subject ? `${a.subject}: ${a.message}` : a.message, mend: a.mend, since: a.since });
  }
  for (const w of s.warnings ?? []) list.push({ key: w, title: "Warning.", text: w, mild: true });
  return list;
}

function finding(f) {
  const kind = { error: "bad", warning: "warn" }[f.severity] ?? "zero";
  return el("li", {},
    el("p", {}, el("span", { class: "severity " + kind }, f.severity), f.subject ? `${f.subject}: ${f.found}` : f.found),
    f.why ? el("p", { class: "why" }, f.why) : null,
    f.mend ? el("p", {}, mend(f.mend)) : null);
}

function mend(command) {
  return command ? el("code", { class: "mend" }, command) : null;
}

function since(t) {
  return t ? el("time", { datetime: t }, "since " + clock(new Date(t))) : null;
}

// title makes words of an alert's stable name.
function title(name) {
  const words = name === "backlog_short" ? "backlog not granted" : name.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}
