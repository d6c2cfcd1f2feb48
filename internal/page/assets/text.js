// How figures are written, and elements that hold text. What senders sent (tags,
// addresses, errors) reaches the page as text nodes only, never as HTML.

// el makes an element; children are elements or text.
export function el(name, attributes = {}, ...children) {
  const e = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) e.setAttribute(key, value);
  }
  e.append(...children.filter((c) => c !== undefined && c !== null));
  return e;
}

// write sets an element's text if it is another one, so that a selection by the
// reader lives on and screen readers are not told the same again.
export function write(e, text) {
  if (e.textContent !== text) e.textContent = text;
}

// show keeps an element in the page's flow only while it says something.
export function show(e, text) {
  write(e, text);
  e.hidden = text === "";
}

export function attribute(e, name, value) {
  if (e.getAttribute(name) !== String(value)) e.setAttribute(name, value);
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function count(n) {
  return whole.format(n);
}

// bytes uses binary prefixes, as total_limit_size does.
export function bytes(n) {
  let v = n;
  for (const unit of ["B", "KiB", "MiB", "GiB", "TiB"]) {
    if (v < 1024 || unit === "TiB") return (unit === "B" || v >= 100 ? whole.format(v) : v.toFixed(1)) + " " + unit;
    v /= 1024;
  }
}

export function amount(n, unit) {
  return unit === "bytes" ? bytes(n) : count(n);
}

// rate writes a figure per second with three digits that matter.
export function rate(n) {
  if (n >= 1e6) return (n / 1e6).toFixed(n >= 1e8 ? 0 : n >= 1e7 ? 1 : 2) + " M";
  if (n >= 1e5) return whole.format(n / 1e3) + " k";
  if (n > 0 && n < 10) return n.toFixed(1);
  return whole.format(n);
}

// seconds writes a latency.
export function seconds(s) {
  if (s < 1e-3) return whole.format(s * 1e6) + " µs";
  if (s < 1) return (s * 1e3).toFixed(s < 1e-2 ? 2 : s < 0.1 ? 1 : 0) + " ms";
  return s.toFixed(s < 10 ? 2 : 1) + " s";
}

// age writes how long something has lasted.
export function age(s) {
  if (s < 0) return "0 s";
  if (s < 1) return whole.format(s * 1e3) + "\u00a0ms";
  if (s < 60) return s.toFixed(s < 10 ? 1 : 0) + "\u00a0s";
  if (s < 3600) return Math.floor(s / 60) + "\u00a0min\u00a0" + Math.floor(s % 60) + "\u00a0s";
  if (s < 86400) return Math.floor(s / 3600) + "\u00a0h\u00a0" + Math.floor((s % 3600) / 60) + "\u00a0min";
  return Math.floor(s / 86400) + "\u00a0d\u00a0" + Math.floor((s % 86400) / 3600) + "\u00a0h";
}

export function clock(date) {
  return date.toLocaleTimeString("en-GB", { hour12: false });
}

// counts lists what is not zero, by name.
export function counts(m) {
  const parts = Object.entries(m ?? {}).filter(([, n]) => n !== 0).sort(([a], [b]) => (a < b ? -1 : 1));
  return parts.length === 0 ? "0" : parts.map(([name, n]) => `${name} ${count(n)}`).join(", ");
}

export function sum(m) {
  return Object.values(m ?? {}).reduce((a, b) => a + b, 0);
}
