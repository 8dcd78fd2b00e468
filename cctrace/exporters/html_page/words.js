"use strict";
// What the other scripts share: the data, how figures are written, and how text gets into
// the document. Names are the traced program's own words: they become text nodes, and what
// is not to be seen in them is written out.

const DATA = JSON.parse(document.getElementById("data").textContent);

// Parts of a step, in the order they are drawn, with what each is.
const PARTS = {
  queue_wait: "a copy waited for work queued before it",
  sync_wait: "a wait for stream, event or device, less its toll",
  bridge_toll: "what crossings cost whatever their size",
  bridge_transfer: "bytes at the bridge's bandwidth",
  launch: "launches, graphs, collectives, memsets and event calls",
  alloc: "allocations and frees",
  host_compute: "on the CPU outside of CUDA calls",
  lock_wait: "off the CPU outside of CUDA calls: a lock, a hand-over, I/O, a sleep",
  runnable: "ready, but no CPU",
  unattributed: "not known",
};

// As cctrace/store/text.py has it: an emoji keeps the variation selector behind it.
const HIDDEN = /(?<!\p{S})[\ufe0e\ufe0f]|(?![\ufe0e\ufe0f])[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\ufffe\uffff]/gu;

const PLAIN = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };

/** Text with control characters, marks of direction and the like written out. */
function shown(text) {
  return String(text).replace(HIDDEN, (character) => {
    const code = character.codePointAt(0);
    if (character in PLAIN) return PLAIN[character];
    if (code < 0x100) return `\\x${code.toString(16).padStart(2, "0")}`;
    return code < 0x10000 ? `\\u${code.toString(16).padStart(4, "0")}` : `\\U${code.toString(16).padStart(8, "0")}`;
  });
}

/** The text, no longer than so many characters. */
function cut(text, length) {
  const characters = Array.from(shown(text));
  return characters.length > length ? `${characters.slice(0, length - 1).join("")}…` : characters.join("");
}

const UNITS = [["ns", 1], ["us", 1e3], ["ms", 1e6], ["s", 1e9]];

/** Unit and scale in which the length has at least 1 before the point. */
function unitOf(ns) {
  let found = UNITS[0];
  for (const unit of UNITS) if (Math.abs(ns) >= unit[1] * 0.9995) found = unit;
  return found;
}

/** A length to three digits, as in the text report: `10.9 ms`. */
function duration(ns) {
  if (ns === null || ns === undefined) return "–";
  const [unit, scale] = unitOf(ns);
  const value = Number((ns / scale).toPrecision(3));
  const whole = String(Math.trunc(Math.abs(value))).length;
  return `${value.toFixed(scale > 1 ? Math.max(3 - whole, 0) : 0)} ${unit}`;
}

function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  let value = bytes;
  let unit = "B";
  for (const name of ["KiB", "MiB", "GiB", "TiB"]) {
    if (value < 1024) break;
    value /= 1024;
    unit = name;
  }
  return `${Number(value.toPrecision(3))} ${unit}`;
}

const count = (number) => number.toLocaleString("en-US");
/** A share; one that is not nothing is not written as nothing. */
function percent(ratio, digits = 1) {
  const least = 10 ** -digits;
  return ratio > 0 && ratio * 100 < least / 2 ? `<${least}%` : `${(ratio * 100).toFixed(digits)}%`;
}
const plural = (number, word, many = `${word}s`) => `${count(number)} ${number === 1 ? word : many}`;

/** A change against what was, as `−19%`. */
function change(after, before) {
  const ratio = Math.round((after / before - 1) * 100);
  return `${ratio < 0 ? "−" : ratio > 0 ? "+" : "±"}${Math.abs(ratio)}%`;
}

/**
 * An element. Attributes are set by name, `on` holds listeners; children are elements or
 * text, which is shown as text whatever is in it.
 */
function el(tag, attributes = {}, ...children) {
  const svg = el.svg.has(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, run] of Object.entries(value)) made.addEventListener(event, run);
    else if (name === "style") for (const [key, text] of Object.entries(value)) made.style.setProperty(key, text);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    made.append(child instanceof Node ? child : shown(child));
  }
  return made;
}
el.svg = new Set(["svg", "g", "rect", "line", "path", "text", "clipPath", "defs", "pattern"]);

const section = (id) => document.getElementById(id);

/** A table. Cells that begin with a digit are figures, and aligned as such. */
function table(head, rows, attributes = {}) {
  const numeric = head.map((_, at) => rows.length > 0 && rows.every((row) => isFigure(row[at])));
  const cell = (tag, content, at, scope) =>
    el(tag, { class: numeric[at] ? "figure" : null, scope }, content);
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": attributes.label || "Table" },
    el("table", {},
      el("thead", {}, el("tr", {}, head.map((content, at) => cell("th", content, at, "col")))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((content, at) => cell("td", content, at)))))));
}

const isFigure = (content) => typeof content === "string" && /^[~<+−-]?[\d–]/.test(content);

/** The steps that the page is about: decode where there is any, else the most time. */
function mainLoop() {
  const { steps, parts } = DATA.report;
  const known = steps.filter((s) => parts.some((p) => p.engine === s.engine && p.phase === s.phase));
  return known.find((s) => s.phase === "decode") || known[0] || null;
}

const loopName = (loop) => [loop.engine, loop.phase].filter(Boolean).join(" ");

/** A choice among things; one alone is no choice, and shows nothing. */
function choice(label, names, chosen, pick) {
  if (names.length < 2) return null;
  const options = names.map((name, at) => el("option", { value: String(at), selected: at === chosen }, cut(name, 120)));
  const list = el("select", { on: { change: (event) => pick(Number(event.target.value)) } }, options);
  return el("label", { class: "choice" }, el("span", {}, label), list);
}
