// Rates and latencies of the last five minutes.
import { bytes, clock, el, rate, seconds, write } from "./text.js";

const span = 300; // seconds
const gap = 3; // seconds without a point: the line breaks

const perSecond = (v) => rate(v);
const latency = (quantile) => (p, of) => p[of]?.[quantile] ?? null;

const charts = [
  { title: "events", unit: "/s", series: [(p) => p.events], text: perSecond },
  { title: "bytes", unit: "/s", series: [(p) => p.bytes], text: bytes, binary: true },
  { title: "connections", unit: "/s", series: [(p) => p.connections], text: perSecond },
  { title: "heartbeats", unit: "/s", series: [(p) => p.heartbeats], text: perSecond },
  { title: "ack latency", names: ["p50", "p99"], series: [(p) => latency("p50")(p, "ack"), (p) => latency("p99")(p, "ack")], text: seconds },
  { title: "commit latency", names: ["p50", "p99"], series: [(p) => latency("p50")(p, "commit"), (p) => latency("p99")(p, "commit")], text: seconds },
];

export class Charts {
  constructor(parent) {
    this.points = [];
    this.charts = charts.map((c) => new Chart(c));
    parent.replaceChildren(...this.charts.map((c) => c.figure));
    this.build();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.build());
  }

  build() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const colours = { line: colour("--line"), second: colour("--line-2"), soft: colour("--soft"), hair: colour("--hair"), font: "11px " + getComputedStyle(document.body).fontFamily };
    for (const c of this.charts) c.build(colours);
    this.draw();
  }

  history(points) {
    this.points = points;
    this.draw();
  }

  add(point) {
    const last = this.points.at(-1);
    if (last !== undefined && point.t <= last.t) return;
    this.points.push(point);
    const from = point.t - span - 10;
    while (this.points[0].t < from) this.points.shift();
    this.draw();
  }

  draw() {
    const rows = [];
    for (const p of this.points) {
      const last = rows.at(-1);
      if (last?.point && p.t - last.t > gap) rows.push({ t: last.t + 1, point: null });
      rows.push({ t: p.t, point: p });
    }
    for (const c of this.charts) c.draw(rows);
  }
}

class Chart {
  constructor(config) {
    this.config = config;
    this.now = config.series.map((_, i) => el("span", { class: "now" + (config.names ? (i === 0 ? " first" : " second") : "") }));
    this.title = el("span", { class: "title" }, config.title);
    this.plot = el("div", { class: "plot", role: "img" });
    this.figure = el("figure", { class: "chart" }, el("figcaption", {}, this.title, ...this.now), this.plot);
    this.data = [[], ...config.series.map(() => [])];
    new ResizeObserver(() => {
      if (this.chart !== undefined && this.plot.clientWidth > 0) this.chart.setSize(this.size());
    }).observe(this.plot);
  }

  size() {
    return { width: this.plot.clientWidth, height: 116 };
  }

  build(colours) {
    this.chart?.destroy();
    const { text, binary } = this.config;
    const axis = { stroke: colours.soft, font: colours.font, ticks: { show: false } };
    const grid = { stroke: colours.hair, width: 1 };
    this.chart = new uPlot({
      ...this.size(),
      legend: { show: false },
      padding: [6, 14, 0, 0],
      cursor: { y: false, drag: { x: false, y: false }, points: { show: false }, sync: { key: "weir" } },
      scales: {
        x: { time: true, range: () => [this.end() - span, this.end()] },
        y: { range: (_, __, max) => [0, max > 0 ? max * 1.08 : 1] },
      },
      axes: [
        { ...axis, grid: { show: false }, size: 20, gap: 3, space: 64, incrs: [60, 120, 300], values: (_, at) => at.map((t) => clock(new Date(t * 1000)).slice(0, 5)) },
        { ...axis, grid, size: 62, gap: 6, space: 26, incrs: binary ? powers(2) : undefined, values: (_, at) => at.map((v) => (v === 0 ? "0" : text(v))) },
      ],
      series: [{}, ...this.config.series.map((_, i) => ({
        stroke: i === 0 ? colours.line : colours.second, width: 1.5, dash: i === 0 ? undefined : [5, 3],
        fill: this.config.series.length === 1 ? colours.line + "26" : undefined, points: { show: true, size: 4, filter: lonely },
      }))],
      hooks: { setCursor: [() => this.caption()] },
    }, this.data, this.plot);
  }

  end() {
    return this.data[0].at(-1) ?? Date.now() / 1000;
  }

  draw(rows) {
    this.data = [rows.map((r) => r.t), ...this.config.series.map((value) => rows.map((r) => (r.point === null ? null : value(r.point))))];
    this.chart.setData(this.data);
    this.caption();
  }

  // caption writes the newest figures, or those under the cursor.
  caption() {
    const { title, unit = "", names, text } = this.config;
    const under = this.chart?.cursor.idx;
    const at = this.chart?.cursor.left >= 0 && under !== null && under !== undefined ? under : this.data[0].length - 1;
    const value = (i) => {
      const v = this.data[i + 1][at];
      return v === null || v === undefined ? "–" : text(v) + unit;
    };
    write(this.title, at === this.data[0].length - 1 ? title : `${title} at ${clock(new Date(this.data[0][at] * 1000))}`);
    this.now.forEach((e, i) => write(e, (names ? names[i] + " " : "") + value(i)));
    this.plot.setAttribute("aria-label", `${title}, last five minutes; now ${this.now.map((e) => e.textContent).join(", ")}`);
  }
}

// lonely are the points with no neighbour, which no line shows: a quiet weir acks
// now and then.
function lonely(chart, series) {
  const values = chart.data[series];
  const at = [];
  values.forEach((v, i) => {
    if (typeof v === "number" && typeof values[i - 1] !== "number" && typeof values[i + 1] !== "number") at.push(i);
  });
  return at;
}

// powers are the axis steps for bytes, so that labels are whole.
function powers(base) {
  return Array.from({ length: 50 }, (_, i) => base ** i);
}
