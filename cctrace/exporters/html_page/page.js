// The sections that are text, tables and bars. Each is drawn if the run has something to
// say in it, and taken out if not.

const { report } = DATA;
const RUN = report.run;
const ENDED = {
  clean: "ended by itself",
  target_signal: "ended by a signal",
  stopped: "recording stopped",
  duration: "recorded for a set time",
  disk_full: "the disk was full",
  write_failed: "could not be written",
  recorder_killed: "the recorder was killed",
  recording: "still recording",
};

function fill(id, ...children) {
  const content = children.flat(Infinity).filter((child) => child);
  if (content.length === 0) section(id).remove();
  else section(id).append(...content);
}

function drawRan() {
  const what = RUN.imported_from ? `imported from ${RUN.imported_from}` : RUN.command.join(" ");
  const on = [RUN.gpu, RUN.gpu_cc && RUN.gpu_cc !== "unknown" ? `CC ${RUN.gpu_cc}` : "CC state not told",
    RUN.tee && RUN.tee !== "unknown" ? `TEE ${RUN.tee}` : null, RUN.started ? `${RUN.started} UTC` : null,
    RUN.length_ns === null ? null : duration(RUN.length_ns)];
  fill("ran",
    el("h1", {}, cut(what || "no command", 200)),
    el("p", { class: "muted" }, on.filter(Boolean).map(shown).join(" · ")));
}

function drawVerdict() {
  const { verdict } = DATA;
  const best = report.points[0];
  const gain = verdict.kind === "change" && best && best.remedy ? best.remedy : null;
  const box = section("verdict");
  box.classList.add(verdict.kind);
  const words = el("div", { class: "words" },
    el("p", { class: "kicker" }, gain ? "What to change" : "The verdict"),
    el("p", { class: "sentence" }, verdict.sentence),
    verdict.because && el("p", { class: "because" }, verdict.because),
    gain && gain.switch && el("p", { class: "switch" }, "Settings: ", el("code", {}, gain.switch)),
    verdict.trust && el("p", { class: "muted small" }, `Trust: ${verdict.trust}.`));
  box.append(words);
  if (!gain) return;
  const before = report.replay.recorded_itl_ns;
  const longest = Math.max(before, gain.expected_itl_ns);
  const bar = (name, value, kind) => el("div", { class: "compare" },
    el("span", { class: "muted" }, name),
    el("span", { class: `stick ${kind}`, style: { width: `${(value / longest) * 100}%` } }),
    el("strong", {}, duration(value)));
  box.append(el("div", { class: "gain", role: "img", "aria-label": `Step ${duration(before)} now, about ${duration(gain.expected_itl_ns)} then` },
    el("p", { class: "big" }, change(gain.expected_itl_ns, before)),
    el("p", { class: "muted small" }, "median step, estimated"),
    bar("now", before, "now"), bar("then", gain.expected_itl_ns, "then")));
}

function drawTiles() {
  const main = mainLoop();
  const tiles = [];
  const tile = (name, value, note) => tiles.push(el("div", { class: "tile" },
    el("span", { class: "muted small" }, name), el("strong", {}, value), el("span", { class: "muted small" }, note)));
  if (main && main.p50_ns !== null) {
    tile("Step, median", duration(main.p50_ns), `mean ${duration(main.mean_ns)}`);
    tile("Step, 99th percentile", duration(main.p99_ns), `longest ${duration(main.max_ns)}`);
    tile("Steps", count(main.steps), loopName(main));
  }
  const idle = report.device_idle[0];
  const more = report.device_idle.length > 1 ? `first of ${report.device_idle.length} devices` : null;
  if (idle && idle.observed_share !== null) tile("GPU idle", percent(idle.observed_share), more || "of a step, observed");
  else if (idle && idle.idle_share !== null) tile("GPU idle", `~${percent(idle.idle_share)}`, more || `surely ${percent(idle.idle_lower_ns / idle.total_ns, 0)} to ${percent(idle.idle_upper_ns / idle.total_ns, 0)}`);
  if (RUN.cuda_calls) tile("CUDA calls", count(RUN.cuda_calls), `of ${plural(RUN.events, "event")}`);
  else tile("Events", count(RUN.events), plural(RUN.processes, "process", "processes"));
  tile("Lost", RUN.lost ? count(RUN.lost) : "nothing", RUN.lost ? `events, ${percent(RUN.lost / (RUN.events + RUN.lost), 2)}` : "every event is there");
  fill("tiles", tiles);
}

function drawParts() {
  const loops = report.steps.filter((s) => report.parts.some((p) => p.engine === s.engine && p.phase === s.phase));
  if (loops.length === 0) return fill("parts");
  const body = el("div", {});
  const draw = (loop) => {
    const own = Object.keys(PARTS).map((name) => report.parts.find((p) => p.part === name && p.engine === loop.engine && p.phase === loop.phase)).filter((p) => p && p.total_ns > 0);
    const most = Math.max(...own.map((p) => p.share));
    const whole = el("div", { class: "whole", "aria-hidden": "true" }, own.map((p) =>
      el("span", { class: `fill part-${p.part}`, style: { "flex-grow": String(p.share) }, title: `${p.part} ${percent(p.share)}` })));
    const rows = [...own].sort((a, b) => b.total_ns - a.total_ns).map((p) => el("tr", {},
      el("th", { scope: "row" }, el("span", { class: `dot part-${p.part}` }), el("code", {}, p.part), el("span", { class: "what" }, PARTS[p.part])),
      el("td", { class: "long" }, el("span", { class: `stick part-${p.part}`, style: { width: `${(p.share / most) * 100}%` } })),
      el("td", { class: "figure" }, `${p.is_estimate && ["launch", "host_compute"].includes(p.part) ? "~" : ""}${duration(p.mean_ns)}`),
      el("td", { class: "figure" }, percent(p.share)),
      el("td", { class: "figure" }, duration(p.p99_ns))));
    const head = ["Part", "", "Mean", "Share", "p99"].map((name, at) => el("th", { scope: "col", class: at > 1 ? "figure" : null }, name));
    body.replaceChildren(
      el("p", { class: "lead" }, `A ${loop.phase || ""} step takes ${duration(loop.mean_ns)}`.replace("  ", " "), `, mean of ${count(own.length ? own[0].steps : 0)}. The parts are of the thread that drives the loop, exclude each other, and add up to the step.`),
      whole, el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Parts of a step" },
        el("table", { class: "parts" }, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows))));
  };
  const chosen = Math.max(0, loops.indexOf(mainLoop()));
  draw(loops[chosen]);
  return fill("parts", choice("Steps", loops.map(loopName), chosen, (at) => draw(loops[at])), body);
}

function drawPoints() {
  const { points, replay } = report;
  if (points.length === 0) return fill("points");
  const before = replay ? replay.recorded_itl_ns : null;
  const gainText = (remedy) => before ? `${duration(before)} → ${duration(remedy.expected_itl_ns)}, ${change(remedy.expected_itl_ns, before)}` : duration(remedy.expected_itl_ns);
  const fact = (name, value, attributes = {}) => el("div", attributes, el("dt", {}, name), el("dd", {}, value));
  const card = (point) => {
    const remedy = point.remedy;
    const seen = DATA.timelines.steps.findIndex((s) => s.step_id === point.example_step_id);
    return el("li", { class: "point" },
      el("p", { class: "sentence" }, `${point.sentence[0].toUpperCase()}${point.sentence.slice(1)}.`),
      remedy
        ? el("p", { class: "remedy" }, el("strong", {}, remedy.title), el("span", { class: "pill" }, gainText(remedy)))
        : el("p", { class: "remedy muted" }, `No known remedy helps${point.recoverable_bound_ns ? `; if it took no time a step would be ${duration(point.recoverable_bound_ns)} shorter` : ""}.`),
      remedy && remedy.switch && el("p", { class: "switch" }, el("code", {}, remedy.switch)),
      el("dl", { class: "facts" },
        fact("call", el("code", {}, cut(point.api, 120))),
        fact("thread", `${point.tid}${point.role ? `, ${point.role}` : ""}`),
        fact("calls a step", Number(point.count_per_step.toPrecision(3)).toString()),
        fact("in them, a step", duration(point.held_ns_per_step)),
        fact("of that waiting", duration(point.blocked_ns_per_step)),
        fact("device idle after", duration(point.bubble_ns_per_step)),
        remedy && fact("saves", `${duration(point.recoverable_ns)} (${duration(point.recoverable_low_ns)} to ${duration(point.recoverable_high_ns)})`),
        fact("confidence", `${point.confidence}${point.confidence_reason ? `: ${point.confidence_reason}` : ""}`),
        point.called_from.length > 0 && fact(`called from${point.stack_share < 0.995 ? ` (${Math.round(point.stack_share * 100)}% of the time)` : ""}`, el("code", {}, cut(point.called_from.join(" ← "), 900)), { class: "wide" }),
        point.path && fact("in range", el("code", {}, cut(point.path, 400)), { class: "wide" })),
      el("div", { class: "row" },
        seen >= 0 && el("button", { type: "button", class: "quiet", on: { click: () => showStep(seen, true) } }, `Show step ${point.example_step_id}`),
        remedy && el("details", {}, el("summary", {}, "Evidence and other remedies"),
          el("p", {}, `Evidence: ${remedy.evidence}.`),
          point.alternatives.length > 0 && el("ul", {}, point.alternatives.map((other) => el("li", {}, `${other.title}: ${gainText(other)}`))),
          el("p", { class: "muted small" }, "All are estimates by replay of recorded steps with the change made."))));
  };
  const helped = points.filter((p) => p.remedy);
  const first = (helped.length ? helped : points).slice(0, 3);
  const rest = points.filter((p) => !first.includes(p));
  const error = replay && replay.error_ratio !== null ? ` With nothing changed the replay is off by ${percent(Math.abs(replay.error_ratio))}.` : "";
  return fill("points",
    el("p", { class: "lead" }, `Calls that the loop cannot go on without, by what the best remedy would give back. Estimates from a replay of ${plural(replay ? replay.steps : 0, "step")}.${error}`),
    el("ol", { class: "cards" }, first.map(card)),
    rest.length > 0 && el("details", {}, el("summary", {}, `${count(rest.length)} more`), el("ol", { class: "cards", start: String(first.length + 1) }, rest.map(card))));
}

function drawUnknown() {
  if (report.cannot_say.length === 0 && report.losses.length === 0) return fill("unknown");
  return fill("unknown",
    report.cannot_say.length > 0 && el("ul", { class: "unknown" }, report.cannot_say.map((unknown) => el("li", {}, unknown.sentence))),
    report.losses.length > 0 && el("h3", {}, "Lost or incomplete"),
    report.losses.length > 0 && table(["Reason", "Count", "Means"], report.losses.map((loss) => [loss.reason, count(loss.count), `${loss.loses_event ? "an event is missing" : "an event is less than whole"}: ${loss.meaning}`]), { label: "Losses" }));
}

function drawFacts() {
  const facts = [
    ["command", RUN.command.length ? el("code", {}, cut(RUN.command.join(" "), 2000)) : null],
    ["imported from", RUN.imported_from],
    ["run", el("code", {}, RUN.path)],
    ["started", RUN.started && `${RUN.started} UTC`],
    ["recorded for", RUN.length_ns === null ? null : duration(RUN.length_ns)],
    ["ended", `${ENDED[RUN.ended] || RUN.ended}${RUN.exit_code === null ? "" : `, exit code ${RUN.exit_code}`}`],
    ["GPU", RUN.gpu || "not told"],
    ["driver", RUN.gpu_driver],
    ["confidential computing", `GPU ${RUN.gpu_cc || "unknown"}, machine ${RUN.tee || "unknown"}`],
    ["kernel", RUN.kernel && `Linux ${RUN.kernel}`],
    ["CPU", RUN.cpu],
    ["events", `${count(RUN.events)} (${count(RUN.cuda_calls)} CUDA calls), ${size(RUN.size_bytes)}`],
    ["launches counted", RUN.launches_counted ? count(RUN.launches_counted) : null],
    ["cctrace", RUN.cctrace_version],
  ].filter(([, value]) => value !== null && value !== undefined);
  const attached = RUN.sources.filter((source) => source.state === "attached");
  const refused = RUN.sources.filter((source) => source.state !== "attached");
  fill("facts",
    el("dl", { class: "facts wide" }, facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    attached.length > 0 && el("p", {}, `Sources recorded: ${attached.map((source) => source.name).join(", ")}.`),
    refused.length > 0 && el("h3", {}, "Sources refused"),
    refused.length > 0 && table(["Source", "Why", "What would mend it"], refused.map((source) => [source.name, source.reason || "–", source.hint || "–"]), { label: "Sources refused" }));
  section("foot").append(el("p", {}, `Made by cctrace ${RUN.cctrace_version} from ${cut(RUN.path, 200)}. Names of ranges, threads and commands are the traced program's own words. This page fetches nothing.`));
}

const WEIGHTS = {
  wall: "Each frame is as wide as its share of the steps’ time",
  blocked: "Each frame is as wide as its share of the time in crossings",
};

function drawFlamegraph() {
  const svg = JSON.parse(document.getElementById("flamegraph-svg").textContent);
  if (!svg) return fill("flamegraph");
  const height = Number((/<svg[^>]*\sheight="(\d+)/.exec(svg) || [])[1] || 480);
  // A frame of its own: the graph's script cannot reach this document.
  const frame = el("iframe", { sandbox: "allow-scripts", title: "Flamegraph by process, thread, range, call and stack", style: { height: `${Math.min(height, 900) + 4}px` } });
  frame.srcdoc = `<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark"><style>body{margin:0}svg{display:block;width:100%}</style>${svg.slice(svg.indexOf("<svg"))}`;
  return fill("flamegraph",
    el("p", { class: "lead" }, `${WEIGHTS[DATA.flamegraph_weight] || "Each frame is as wide as its weight"}: process, thread, NVTX ranges, call and stack, the outermost on top. Click a frame to zoom.${DATA.flamegraph_sampled ? " It is of a sample of this long run: cctrace flamegraph has all of it." : ""}`), frame);
}

function drawNav() {
  const here = [...document.querySelectorAll("section[data-nav]")];
  section("nav").append(...here.map((part) => el("a", { href: `#${part.id}` }, part.dataset.nav)));
}

// -- light and dark -----------------------------------------------------------------------

const THEMES = ["auto", "light", "dark"];
const onTheme = []; // what is drawn in colours of its own, and has to be drawn again

function setTheme(name) {
  const root = document.documentElement;
  if (name === "auto") delete root.dataset.theme;
  else root.dataset.theme = name;
  const button = section("theme");
  button.textContent = `Theme: ${name}`;
  button.setAttribute("aria-label", `Theme: ${name}. Switch`);
  button.dataset.name = name;
  for (const draw of onTheme) draw();
}

section("theme").addEventListener("click", (event) => {
  const at = THEMES.indexOf(event.currentTarget.dataset.name);
  setTheme(THEMES[(at + 1) % THEMES.length]);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => onTheme.forEach((draw) => draw()));

/** A colour of the page's style by its name. */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

setTheme("auto");
drawRan();
drawVerdict();
drawTiles();
drawParts();
drawPoints();
drawUnknown();
drawFacts();
drawFlamegraph();
