// One step, event by event: threads and devices over time, and the chain of what the step's
// end waited for. Drawn anew for each window, so that a step of thousands of events is as
// quick as one of ten.

const WORDS = DATA.timelines.words;
const GUTTER = 168; // pixels for names, on a wide page
const ROW = { range: 17, call: 22, off: 7, device: 20, gap: 12, axis: 24, path: 24 };
const KIND = { host: "host work", call: "in a call", device: "device at work", latency: "until the device begins", wake: "until the woken thread runs", unknown: "before what was replayed", mixed: "many short pieces" };
const MOST_TRACKS = 12;

/** Rows of columns, as objects. */
function unpack(columns) {
  const names = Object.keys(columns);
  return columns[names[0]].map((_, at) => Object.fromEntries(names.map((name) => [name, columns[name][at]])));
}

const word = (number) => WORDS[number];

/** What an event or piece is, in some words. */
function described(thing) {
  const name = word(thing.name);
  const copy = word(thing.copy);
  const words = [name === null ? word(thing.kind) : cut(name, 160)];
  if (copy) words.push(copy.toUpperCase());
  if (thing.size_bytes !== null && thing.size_bytes !== undefined) words.push(size(thing.size_bytes));
  return words.join(" ");
}

/** The step as rows to draw, from the top: each with what is on it. */
function layOut(step) {
  const events = unpack(step.events).map((e, at) => ({ ...e, at, kind_name: word(e.kind), end_ns: e.dur_ns === null ? step.period_ns : e.ts_ns + e.dur_ns, is_open: e.dur_ns === null }));
  const path = step.path ? unpack(step.path).map((p) => ({ ...p, kind_name: word(p.kind), end_ns: p.ts_ns + p.dur_ns })) : [];
  const busy = step.tracks.map((_, number) => events.filter((e) => e.track === number).length);
  const isDriver = (t) => t.pid === step.pid && t.tid === step.tid;
  const order = step.tracks.map((track, number) => ({ track, number })).sort((a, b) =>
    (a.track.kind === "device") - (b.track.kind === "device") || isDriver(b.track) - isDriver(a.track) || busy[b.number] - busy[a.number] || a.number - b.number);
  const rows = [];
  let y = ROW.axis;
  const add = (kind, height, label, things, key) => {
    rows.push({ kind, y, height, label, things, key });
    y += height;
  };
  if (path.length) {
    add("path", ROW.path, "critical path", path, "path");
    y += ROW.gap;
  }
  const shownTracks = order.slice(0, MOST_TRACKS);
  for (const { track, number } of shownTracks) {
    const own = events.filter((e) => e.track === number);
    if (track.kind === "device") {
      const name = `GPU ${track.device ?? "?"}, stream ${track.stream ?? "?"}`;
      add("device", ROW.device, name, own, `device ${track.pid} ${track.stream}`);
    } else {
      const name = `${track.name || "thread"} ${track.tid}${track.role && track.role !== "unknown" ? `, ${track.role}` : ""}`;
      const ranges = own.filter((e) => e.kind_name === "range");
      const depths = [...new Set(ranges.map((e) => e.depth))].sort((a, b) => a - b);
      const more = step.tracks.some((t) => t.pid !== step.pid) ? ` of ${track.pid}` : "";
      let label = `${name}${more}`;
      for (const depth of depths) {
        add("range", ROW.range, label, ranges.filter((e) => e.depth === depth), null);
        label = "";
      }
      add("call", ROW.call, label, own.filter((e) => e.kind_name === "call"), `thread ${track.pid} ${track.tid}`);
      const off = own.filter((e) => e.kind_name === "off_cpu");
      if (off.length) add("off", ROW.off, "", off, null);
    }
    y += ROW.gap;
  }
  const seen = order.some(({ track }) => track.kind === "device");
  const work = step.device && !seen ? unpack(step.device).map((p) => ({ ...p, kind_name: "device", end_ns: p.ts_ns + p.dur_ns, is_guess: true })) : [];
  const streams = [...new Set(work.map((p) => `${p.pid} ${p.stream}`))].slice(0, MOST_TRACKS);
  streams.forEach((stream, at) => {
    const label = `GPU, stream ${at + 1} (estimate)`;
    add("device", ROW.device, label, work.filter((p) => `${p.pid} ${p.stream}` === stream), `device ${stream}`);
    y += ROW.gap;
  });
  return { rows, path, height: y, left_out: order.length - shownTracks.length };
}

class Timeline {
  constructor(step) {
    this.step = step;
    this.whole = [0, step.period_ns];
    this.window = [...this.whole];
    this.chosen = null;
    this.laid = layOut(step);
    this.things = this.laid.rows.flatMap((row) => row.things.map((thing) => ({ thing, row }))).sort((a, b) => a.thing.ts_ns - b.thing.ts_ns || a.row.y - b.row.y);
    this.box = el("div", { class: "timeline", tabindex: "0", role: "application", "aria-label": "Timeline of the step. Plus and minus zoom, arrows pan, 0 shows all, n and p go through events.", "aria-describedby": "timeline-told" });
    this.told = el("p", { class: "told", id: "timeline-told", "aria-live": "polite" }, "Point at an event, or go through them with n and p.");
    const button = (text, label, run) => el("button", { type: "button", class: "quiet", "aria-label": label, on: { click: run } }, text);
    this.tools = el("div", { class: "tools row" },
      button("+", "Zoom in", () => this.zoom(0.5)), button("−", "Zoom out", () => this.zoom(2)),
      button("←", "Pan left", () => this.pan(-0.3)), button("→", "Pan right", () => this.pan(0.3)),
      button("Show all", "Show the whole step", () => this.show(this.whole)),
      el("span", { class: "muted small keys" }, "drag to zoom, or keys + − ← → 0 n p"));
    this.listen();
  }

  /** Draw into its box, as wide as that is. */
  draw() {
    const width = Math.max(this.box.clientWidth, 280);
    const gutter = width < 640 ? 0 : GUTTER;
    this.x = (ns) => gutter + ((ns - this.window[0]) / (this.window[1] - this.window[0])) * (width - gutter);
    this.ns = (x) => this.window[0] + ((x - gutter) / (width - gutter)) * (this.window[1] - this.window[0]);
    const lift = gutter ? 0 : 16; // names above their rows
    const svg = el("svg", { width, height: this.laid.height + lift * this.laid.rows.length, role: "presentation" });
    let down = 0;
    this.places = this.laid.rows.map((row) => {
      if (row.label) down += lift;
      return row.y + down;
    });
    svg.setAttribute("height", String(this.laid.height + down));
    svg.append(el("defs", {}, el("clipPath", { id: "window" }, el("rect", { x: gutter, y: 0, width: width - gutter, height: this.laid.height + down }))));
    svg.append(this.axis(gutter, width, this.laid.height + down));
    const inside = el("g", { "clip-path": "url(#window)" });
    this.laid.rows.forEach((row, at) => {
      const y = this.places[at];
      if (row.label) svg.append(el("text", gutter ? { x: gutter - 10, y: y + row.height / 2 + 4, class: "name", "text-anchor": "end" } : { x: 2, y: y - 3, class: "name" }, cut(row.label, gutter ? 26 : 60)));
      for (const thing of row.things) this.block(inside, row, thing, y, gutter, width);
    });
    inside.append(this.chain());
    this.drag = el("rect", { class: "drag", y: 0, height: this.laid.height + down, width: 0 });
    svg.append(inside, this.drag);
    this.box.replaceChildren(svg);
    if (this.chosen) this.mark();
  }

  axis(gutter, width, height) {
    const [from, end] = this.window;
    const rough = (end - from) / Math.max(2, (width - gutter) / 110);
    const power = 10 ** Math.floor(Math.log10(rough));
    const every = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
    const group = el("g", { class: "axis" });
    const [unit, scale] = unitOf(end);
    const digits = Math.max(0, Math.ceil(-Math.log10(every / scale) - 1e-9));
    for (let at = Math.ceil(from / every) * every; at <= end; at += every) {
      const x = this.x(at);
      const late = x > width - 58;
      group.append(el("line", { x1: x, x2: x, y1: 18, y2: height }),
        el("text", { x: late ? x - 4 : x + 4, y: 13, "text-anchor": late ? "end" : "start" }, `${(at / scale).toFixed(digits)} ${unit}`));
    }
    return group;
  }

  /** One event, if it is in the window. */
  block(parent, row, thing, y, gutter, width) {
    const x = Math.max(this.x(thing.ts_ns), gutter - 2);
    const end = Math.min(this.x(thing.end_ns), width + 2);
    if (end < gutter || x > width) return;
    const wide = Math.max(end - x, 1);
    const kind = row.kind === "call" ? `class-${this.known(word(thing.class))}` : row.kind === "path" ? `path-${thing.kind_name}` : row.kind === "off" ? `off-${word(thing.name) === "runnable" ? "runnable" : "blocked"}` : row.kind;
    const box = el("rect", { x, y, width: wide, height: row.height - 2, rx: wide > 6 && row.kind !== "off" ? 2 : 0, class: `block ${kind}${thing.is_guess ? " guess" : ""}` });
    box.addEventListener("pointerenter", () => this.tell(thing, row));
    box.addEventListener("click", () => this.choose(thing, row));
    thing.box = box;
    parent.append(box);
    if (wide > 34 && row.kind !== "off") {
      const text = row.kind === "path" && !word(thing.name) ? KIND[thing.kind_name] : row.kind === "path" && thing.kind_name !== "call" ? `${KIND[thing.kind_name]}${thing.count > 1 ? ` ×${thing.count}` : ""}` : described(thing);
      const fits = Math.floor((wide - 8) / 6.3);
      if (fits > 3) parent.append(el("text", { x: x + 4, y: y + row.height / 2 + 3, class: `in ${kind}` }, cut(text, fits)));
    }
  }

  known(name) {
    return ["copy", "launch", "graph", "sync", "alloc", "free", "memset", "event", "collective"].includes(name) ? name : "other";
  }

  /** The critical path over the rows it runs along. */
  chain() {
    const at = new Map(this.laid.rows.map((row, number) => [row.key, this.places[number] + row.height - 1]));
    const points = [];
    for (const piece of this.laid.path) {
      const key = piece.kind_name === "device" ? `device ${piece.pid} ${piece.stream}` : `thread ${piece.pid} ${piece.tid}`;
      const y = at.get(key);
      if (y === undefined) continue;
      points.push([this.x(piece.ts_ns), y], [this.x(piece.end_ns), y]);
    }
    if (points.length === 0) return el("g");
    return el("path", { class: "chain", d: `M${points.map(([x, y]) => `${x.toFixed(1)},${y}`).join("L")}` });
  }

  tell(thing, row) {
    const where = row.kind === "path" ? `critical path, ${KIND[thing.kind_name]}` : row.kind === "off" ? `off the CPU, ${word(thing.name)}` : row.kind;
    const many = thing.count > 1 ? ` and ${plural(thing.count - 1, "more piece")} of work` : "";
    const length = thing.is_open ? "never ended" : duration(thing.dur_ns);
    const what = row.kind === "path" && !word(thing.name) ? "" : `${described(thing)}${many} · `;
    this.told.textContent = shown(`${what}${where}${thing.is_guess ? " (estimate)" : ""} · ${length} · from ${duration(thing.ts_ns)} of ${duration(this.step.period_ns)}`);
  }

  choose(thing, row) {
    this.chosen = thing;
    this.tell(thing, row);
    this.mark();
  }

  mark() {
    for (const old of this.box.querySelectorAll(".chosen")) old.classList.remove("chosen");
    if (this.chosen.box && this.chosen.box.isConnected) this.chosen.box.classList.add("chosen");
  }

  /** Go to the next or previous event, and have it in the window. */
  go(by) {
    if (this.things.length === 0) return;
    const at = this.things.findIndex(({ thing }) => thing === this.chosen);
    const next = at < 0 ? (by > 0 ? 0 : this.things.length - 1) : Math.min(Math.max(at + by, 0), this.things.length - 1);
    const { thing, row } = this.things[next];
    const [from, end] = this.window;
    if (thing.end_ns < from || thing.ts_ns > end) this.show([thing.ts_ns - (end - from) / 2, thing.ts_ns + (end - from) / 2]);
    this.choose(thing, row);
  }

  show([from, end]) {
    const whole = this.whole[1] - this.whole[0];
    const length = Math.min(Math.max(end - from, Math.min(100, whole)), whole);
    const start = Math.min(Math.max(from, this.whole[0]), this.whole[1] - length);
    this.window = [start, start + length];
    this.draw();
  }

  zoom(factor, around = (this.window[0] + this.window[1]) / 2) {
    const [from, end] = this.window;
    this.show([around - (around - from) * factor, around + (end - around) * factor]);
  }

  pan(share) {
    const by = (this.window[1] - this.window[0]) * share;
    this.show([this.window[0] + by, this.window[1] + by]);
  }

  listen() {
    const keys = { "+": () => this.zoom(0.5), "=": () => this.zoom(0.5), "-": () => this.zoom(2), ArrowLeft: () => this.pan(-0.2), ArrowRight: () => this.pan(0.2), 0: () => this.show(this.whole), Home: () => this.show(this.whole), n: () => this.go(1), p: () => this.go(-1) };
    this.box.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey || !keys[event.key]) return;
      event.preventDefault();
      keys[event.key]();
    });
    this.box.addEventListener("dblclick", () => this.show(this.whole));
    this.box.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.shiftKey) return; // the page scrolls
      event.preventDefault();
      this.zoom((event.deltaY || event.deltaX) > 0 ? 1.25 : 0.8, this.ns(event.clientX - this.box.getBoundingClientRect().left));
    }, { passive: false });
    let begun = null;
    const at = (event) => event.clientX - this.box.getBoundingClientRect().left;
    this.box.addEventListener("pointerdown", (event) => { begun = event.button === 0 ? at(event) : null; });
    this.box.addEventListener("pointermove", (event) => {
      if (begun === null) return;
      this.drag.setAttribute("x", String(Math.min(begun, at(event))));
      this.drag.setAttribute("width", String(Math.abs(at(event) - begun)));
    });
    window.addEventListener("pointerup", (event) => {
      if (begun === null || !this.box.isConnected) return;
      const ended = at(event);
      const [a, b] = [this.ns(Math.min(begun, ended)), this.ns(Math.max(begun, ended))];
      if (Math.abs(ended - begun) > 5) this.show([a, b]);
      begun = null;
    });
  }
}

const REASON = { median: "median", p90: "90th percentile", p99: "99th percentile" };

function reasonText(reason) {
  const [name, place] = reason.split(" ");
  if (name === "point") return `example of point ${place}`;
  if (name === "slowest") return place === "1" ? "slowest" : `no. ${place} of the slowest`;
  if (name === "first") return `no. ${place} of the run`;
  return REASON[name];
}

let timeline = null;
let showStep = () => {};

function drawSteps() {
  const { steps } = DATA.timelines;
  if (steps.length === 0) return fill("steps");
  const body = el("div", {});
  const names = steps.map((s) => `Step ${count(s.step_id)}: ${duration(s.period_ns)}${s.phase ? `, ${s.phase}` : ""} (${s.reasons.map(reasonText).join(", ")})`);
  const draw = (at) => {
    const step = steps[at];
    timeline = new Timeline(step);
    const { laid } = timeline;
    const notes = [];
    if (step.left_out) notes.push(`${plural(step.left_out, "shorter event")} of this step are not shown.`);
    if (laid.left_out > 0) notes.push(`${plural(laid.left_out, "quieter thread")} are not shown.`);
    if (step.path) notes.push(`The critical path is an estimate: a replay of this step takes ${duration(step.replayed_ns)}${step.is_hidden ? ", and how long the device worked is a guess" : ""}.`);
    else notes.push("No critical path: the step makes no CUDA calls, or could not be replayed.");
    body.replaceChildren(timeline.tools, timeline.box, timeline.told, legend(), el("p", { class: "muted small" }, notes.join(" ")),
      el("div", { class: "two" }, pathTable(laid.path, step), compared(step)));
    timeline.draw();
  };
  const pick = choice("Step", names, 0, draw);
  showStep = (at, scroll) => {
    if (pick) pick.querySelector("select").value = String(at);
    draw(at);
    if (!scroll) return;
    section("steps").scrollIntoView();
    timeline.box.focus({ preventScroll: true });
  };
  fill("steps",
    el("p", { class: "lead" }, `${plural(steps.length, "step")} of ${count(report.steps.reduce((sum, s) => sum + s.steps, 0))} are in this page: median, 90th and 99th percentile, the slowest, the first, and an example of each point above. The thick line is the critical path: the chain of what the step’s end waited for. To make the step shorter, something on it has to be.`),
    pick || el("p", {}, names[0]), body);
  draw(0);
  new ResizeObserver(() => timeline.draw()).observe(section("steps"));
  return undefined;
}

function legend() {
  const entries = [["class-copy", "copy"], ["class-launch", "launch, graph"], ["class-sync", "wait"], ["class-alloc", "allocation"], ["class-event", "other call"], ["device", "device"], ["path-host", "host work"], ["off-blocked", "off the CPU"], ["off-runnable", "no CPU free"]];
  return el("p", { class: "legend small" }, entries.map(([kind, name]) => el("span", {}, el("span", { class: `dot ${kind}` }), name)));
}

/** Where the path's time is, most first. */
function pathTable(path, step) {
  if (path.length === 0) return null;
  const groups = new Map();
  for (const piece of path) {
    const key = `${piece.kind_name}\n${piece.name}\n${piece.copy}`;
    const group = groups.get(key) || { piece, dur_ns: 0, count: 0 };
    group.dur_ns += piece.dur_ns;
    group.count += 1;
    groups.set(key, group);
  }
  const whole = path[path.length - 1].end_ns;
  const name = ({ piece }) => {
    const call = word(piece.name) ? [word(piece.copy) ? `${word(piece.copy).toUpperCase()} ` : "", el("code", {}, cut(word(piece.name), 60))] : null;
    if (piece.kind_name === "host") return "host work outside of calls";
    if (piece.kind_name === "device") return ["device at work, from ", call];
    if (piece.kind_name === "latency") return ["until the device begins ", call];
    if (piece.kind_name === "call") return call ? ["in ", call] : "in calls";
    return KIND[piece.kind_name];
  };
  const rows = [...groups.values()].sort((a, b) => b.dur_ns - a.dur_ns).slice(0, 8).map((group) => [el("span", {}, name(group)), duration(group.dur_ns), percent(group.dur_ns / whole)]);
  return el("div", {}, el("h3", {}, "What the step’s end waited for"), table(["On the critical path", "Time", "Share"], rows, { label: `Critical path of step ${step.step_id}` }));
}

/** The step's parts against those of the usual step. */
function compared(step) {
  if (!step.parts) return null;
  const usual = Object.fromEntries(report.parts.filter((p) => p.engine === step.engine && p.phase === step.phase).map((p) => [p.part, p.p50_ns]));
  const rows = Object.keys(PARTS).filter((name) => step.parts[name] || usual[name]).map((name) => {
    const more = step.parts[name] - (usual[name] || 0);
    return [el("span", {}, el("span", { class: `dot part-${name}` }), el("code", {}, name)), duration(step.parts[name]), duration(usual[name]), more === 0 ? "0" : `${more < 0 ? "−" : "+"}${duration(Math.abs(more))}`];
  });
  return el("div", {}, el("h3", {}, "Its parts against the usual"), table(["Part", "Here", "Median", "More"], rows, { label: `Parts of step ${step.step_id}` }));
}

drawSteps();
