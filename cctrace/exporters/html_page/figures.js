// The figures that Plotly draws: latency over time, its distribution, copies by size.

const AXIS = () => ({ gridcolor: colour("line"), linecolor: colour("line"), zeroline: false, tickcolor: colour("line"), ticks: "outside", ticklen: 4, tickfont: { color: colour("muted"), size: 12 }, title: { font: { color: colour("muted"), size: 12 }, standoff: 10 }, fixedrange: false, automargin: true, exponentformat: "none", separatethousands: true });
const OPTIONS = { displayModeBar: false, responsive: true, scrollZoom: false };
// Plotly reads some HTML in its texts.
const plain = (text) => shown(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function layout(changes) {
  return {
    autosize: true, height: 320, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, color: colour("ink"), size: 13 },
    margin: { l: 64, r: 20, t: 14, b: 60 }, hovermode: "closest", dragmode: "zoom", showlegend: false,
    hoverlabel: { bgcolor: colour("surface"), bordercolor: colour("line"), font: { color: colour("ink"), size: 12 } },
    ...changes,
  };
}

/** A box that Plotly draws in, which the keyboard zooms as well. */
function figure(label, draw) {
  const box = el("div", { class: "figure-box", tabindex: "0", role: "img", "aria-label": `${label}. Plus and minus zoom, arrows pan, 0 shows all.` });
  const again = () => {
    const { traces, shape } = draw();
    Plotly.react(box, traces, shape, OPTIONS);
  };
  const move = (centre, factor) => {
    const [from, end] = box._fullLayout.xaxis.range.map(Number);
    const middle = (from + end) / 2 + (end - from) * centre;
    const half = ((end - from) / 2) * factor;
    Plotly.relayout(box, { "xaxis.range": [middle - half, middle + half] });
  };
  const keys = { "+": () => move(0, 0.5), "=": () => move(0, 0.5), "-": () => move(0, 2), ArrowLeft: () => move(-0.2, 1), ArrowRight: () => move(0.2, 1), 0: again };
  box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  onTheme.push(() => box.isConnected && again());
  return { box, again };
}

function drawLatency() {
  const loops = DATA.lengths;
  if (loops.length === 0) return fill("itl");
  const main = mainLoop();
  let loop = loops.find((l) => main && l.engine === main.engine && l.phase === main.phase) || loops[0];
  const stats = () => report.steps.find((s) => s.engine === loop.engine && s.phase === loop.phase);
  let isCut = false;

  const time = figure("Length of steps over time", () => {
    const bins = loop.over_time;
    const [unit, scale] = unitOf(stats().p50_ns);
    const single = bins.steps.every((n) => n === 1);
    const at = bins.ts_ns.map((ns) => ns / 1e9);
    const told = bins.steps.map((n, i) => (n === 1 ? `step ${count(bins.from_step_id[i])}: ${duration(bins.p50_ns[i])}` : `${count(n)} steps from ${count(bins.from_step_id[i])}<br>median ${duration(bins.p50_ns[i])}<br>${duration(bins.min_ns[i])} to ${duration(bins.max_ns[i])}`));
    const line = (y, more) => ({ x: at, y: y.map((ns) => ns / scale), mode: "lines", hoverinfo: "skip", line: { width: 0, color: colour("band") }, ...more });
    const traces = single ? [] : [line(bins.max_ns, {}), line(bins.min_ns, { fill: "tonexty", fillcolor: colour("band") })];
    traces.push(line(bins.p50_ns, { mode: single && at.length < 400 ? "lines+markers" : "lines", marker: { size: 4, color: colour("accent") }, line: { width: 1.4, color: colour("accent") }, hoverinfo: "text", text: told }));
    const yaxis = { ...AXIS(), ticksuffix: ` ${unit}`, rangemode: "normal" };
    if (isCut) yaxis.range = [(Math.min(...bins.min_ns) / scale) * 0.98, (stats().p99_ns / scale) * 1.02];
    return { traces, shape: layout({ yaxis, xaxis: { ...AXIS(), ticksuffix: " s", title: { text: "time since the recording began", font: { color: colour("muted"), size: 12 }, standoff: 10 } } }) };
  });

  const spread = figure("Steps by their length", () => {
    const bins = loop.histogram;
    const kept = bins.until_ns.map((until, i) => i).filter((i) => bins.until_ns[i] !== null);
    const [unit, scale] = unitOf(stats().p50_ns);
    const traces = [{
      type: "bar", x: kept.map((i) => (bins.from_ns[i] + bins.until_ns[i]) / 2 / scale), width: kept.map((i) => (bins.until_ns[i] - bins.from_ns[i]) / scale), y: kept.map((i) => bins.steps[i]),
      marker: { color: colour("accent"), line: { width: 0.5, color: colour("surface") } }, hoverinfo: "text",
      text: kept.map((i) => `${plural(bins.steps[i], "step")}<br>${duration(bins.from_ns[i])} to ${duration(bins.until_ns[i])}`), textposition: "none",
    }];
    const middle = stats().p50_ns / scale;
    const lines = [{ type: "line", x0: middle, x1: middle, y0: 0, y1: 1, yref: "paper", line: { color: colour("ink"), width: 1, dash: "dot" } }];
    const notes = [{ x: middle, y: 1, yref: "paper", text: `median ${duration(stats().p50_ns)}`, showarrow: false, xanchor: "left", xshift: 6, yanchor: "top", font: { size: 12, color: colour("ink") } }];
    return { traces, shape: layout({ bargap: 0, height: 290, margin: { l: 64, r: 20, t: 14, b: 40 }, shapes: lines, annotations: notes, yaxis: { ...AXIS(), ...(Math.max(...bins.steps) < 8 ? { dtick: 1 } : {}), title: { text: "steps", font: { color: colour("muted"), size: 12 } } }, xaxis: { ...AXIS(), ticksuffix: ` ${unit}` } }) };
  });

  const lead = el("p", { class: "lead" });
  const beyond = el("p", { class: "muted small" });
  const tell = () => {
    const bins = loop.over_time;
    const most = Math.max(...bins.steps);
    lead.textContent = most === 1
      ? `Each point is one step of ${shown(loopName(loop))}: from its start to the next one's.`
      : `${count(loop.steps)} steps of ${shown(loopName(loop))} in ${count(bins.steps.length)} points of up to ${count(most)} steps each: the line is their median, the band from the shortest to the longest.`;
    const at = loop.histogram.until_ns.indexOf(null);
    beyond.textContent = at < 0 ? "" : `${plural(loop.histogram.steps[at], "step")} of ${count(loop.steps)} took ${duration(loop.histogram.from_ns[at])} or longer and are not in this figure; the longest took ${duration(stats().max_ns)}.`;
  };
  const all = () => {
    tell();
    time.again();
    spread.again();
  };
  const figures = loops.map((l) => report.steps.find((s) => s.engine === l.engine && s.phase === l.phase));
  const toggle = el("button", { type: "button", class: "quiet", "aria-pressed": "false", on: { click: () => {
    isCut = !isCut;
    toggle.setAttribute("aria-pressed", String(isCut));
    time.again();
  } } }, "Cut off the slowest 1%");
  const whole = el("button", { type: "button", class: "quiet", on: { click: all } }, "Show all");
  fill("itl", choice("Steps", loops.map(loopName), loops.indexOf(loop), (at) => { loop = loops[at]; all(); }), lead, time.box, el("div", { class: "row tools" }, toggle, whole, el("span", { class: "muted small keys" }, "drag to zoom, double-click to reset")),
    el("h3", {}, "How many steps are how long"), spread.box, beyond,
    table(["Steps", "Count", "Mean", "p50", "p90", "p99", "Longest"], figures.map((s) => [el("span", {}, cut(loopName(s), 60)), count(s.steps), ...[s.mean_ns, s.p50_ns, s.p90_ns, s.p99_ns, s.max_ns].map(duration)]), { label: "Lengths of steps" }));
  all();
  return undefined;
}

const COPY_COLOURS = ["class-copy", "device", "host", "class-launch", "class-sync", "class-alloc"];
const LEAST_POINTS = 3; // fewer in all say nothing that the table does not
const LEAST_COPIES = 10; // of a class: the median of fewer says little

function drawCopies() {
  const groups = new Map();
  const drawn = DATA.copies.filter((row) => row.timed >= LEAST_COPIES);
  for (const row of drawn) {
    const name = [row.copy_kind.toUpperCase(), row.host_memory].filter(Boolean).join(", ");
    groups.set(name, [...(groups.get(name) || []), row]);
  }
  const content = [];
  if (drawn.length >= LEAST_POINTS) {
    const tolls = figure("Time of a copy by its size", () => {
      const traces = [...groups].flatMap(([name, rows], at) => {
        const tint = colour(COPY_COLOURS[at % COPY_COLOURS.length]);
        const x = rows.map((r) => Math.max(r.size_from_bytes, 1));
        const symbol = ["circle", "square", "diamond", "triangle-up", "cross", "x"][at % 6];
        const reference = (key, dash) => ({ x, y: rows.map((r) => r[key]), mode: "lines", line: { color: tint, width: 1, dash }, opacity: 0.6, hoverinfo: "skip", showlegend: false });
        return [{ x, y: rows.map((r) => r.p50_ns), name: plain(name), mode: "lines+markers", marker: { color: tint, size: 8, symbol }, line: { color: tint, width: 1.5 }, hoverinfo: "text", text: rows.map((r) => `${plain(name)}<br>from ${size(r.size_from_bytes)}: ${duration(r.p50_ns)}<br>${plural(r.timed, "copy", "copies")}`) },
          reference("open_ns", "dot"), reference("cc_ns", "dash")];
      });
      const sizes = drawn.map((r) => Math.max(r.size_from_bytes, 1));
      const tens = Array.from({ length: 11 }, (_, power) => 10 ** power);
      const ticks = [...new Set(sizes)].sort((a, b) => a - b);
      return { traces, shape: layout({ showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 12 } }, margin: { l: 64, r: 20, t: 44, b: 60 },
        xaxis: { ...AXIS(), type: "log", tickvals: ticks, ticktext: ticks.map((n) => size(n)), title: { text: "size, from", font: { color: colour("muted"), size: 12 }, standoff: 10 } },
        yaxis: { ...AXIS(), type: "log", tickvals: tens, ticktext: tens.map((ns) => duration(ns).replace(/\.0+ /, " ")) } }) };
    });
    content.push(tolls.box, el("p", { class: "muted small" }, "Solid: this run, median of ten copies or more. Dotted: published without confidential computing; dashed: published with it."));
    content.draw = tolls.again;
  }
  if (DATA.copies.length) {
    content.push(table(["Copies", "Size from", "Calls", "Undisturbed", "p50", "p99", "Published, CC off", "Published, CC on"],
      DATA.copies.map((r) => [el("span", {}, cut([r.copy_kind.toUpperCase(), r.host_memory].filter(Boolean).join(", "), 60)), size(r.size_from_bytes), count(r.calls), count(r.timed), duration(r.p50_ns), duration(r.p99_ns), duration(r.open_ns), duration(r.cc_ns)]), { label: "Copies by size" }));
  }
  const bridge = report.bridge.filter((row) => row.calls > 0);
  if (bridge.length) {
    content.push(el("h3", {}, "All crossings: the bridge model"),
      el("p", {}, "A crossing costs a fixed toll, and a copy time for its bytes as well. Fitted from calls that nothing held up; where the run has too few, from published figures."),
      table(["Call", "Kind", "Calls", "Toll", "Bandwidth", "Waits for its stream", "From", "Confidence"], bridge.map((r) => [el("code", {}, cut(r.api || r.cls, 60)), [r.copy_kind, r.host_memory].filter(Boolean).join(", ") || r.cls, count(r.calls), duration(r.toll_ns), r.gb_per_s === null ? "–" : `${Number(r.gb_per_s.toPrecision(3))} GB/s`, r.blocks === null ? "–" : r.blocks ? "yes" : "no", r.source === "run" ? `this run (${count(r.samples)})` : `published (${r.profile || "?"})`, r.confidence]), { label: "Bridge model" }));
  }
  if (content.length === 0) return fill("copies");
  const where = DATA.copies_sampled || report.bridge_sampled ? " Figures are from a sample of the run." : "";
  fill("copies", el("p", { class: "lead" }, `Host time of calls that cross between CPU and GPU, and that waited for no other work.${where}`), ...content);
  if (content.draw) content.draw();
  return undefined;
}

drawLatency();
drawCopies();
drawNav();
// A printer's page has another width than the window.
window.addEventListener("beforeprint", () => {
  for (const closed of document.querySelectorAll("details:not([open])")) {
    closed.open = true;
    closed.dataset.closed = "";
  }
  resizeAll(680);
});
window.addEventListener("afterprint", () => {
  for (const opened of document.querySelectorAll("details[data-closed]")) opened.open = false;
  resizeAll(null);
});

function resizeAll(width) {
  for (const box of document.querySelectorAll(".js-plotly-plot")) {
    if (width) Plotly.relayout(box, { width });
    else Plotly.relayout(box, { width: null, autosize: true });
  }
  if (timeline) {
    timeline.box.style.width = width ? `${width}px` : "";
    timeline.draw();
  }
}
document.documentElement.dataset.drawn = "";
