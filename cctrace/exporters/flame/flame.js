// Makes the SVG flamegraph interactive: zoom, search, keyboard, a line of details.
//
// Without this script the drawing stands as it was written: frames with their titles. All
// text that the traced program wrote is read from the document and written as text; none
// of it becomes markup.
(function () {
  "use strict";

  const SVG = "http://www.w3.org/2000/svg";
  const XHTML = "http://www.w3.org/1999/xhtml";
  const LEAST_PX = 0.1; // narrower frames are not drawn
  const PAD_PX = 3; // from a frame's edge to its name
  const MARGIN_PX = 10;

  const script = document.currentScript;
  const root = script && script.closest ? script.closest("svg.cctrace-flame") : null;
  if (!root) return;
  const alone = root === document.documentElement;
  const head = root.querySelector(".head");
  const detail = [...root.querySelectorAll(".detail")];
  const headHeight = Number(root.dataset.head);
  const total = Number(root.dataset.total);
  const idle = [
    detail[0].textContent,
    "click, or Tab, arrows and Enter: zoom in    Escape: back    / or Ctrl-F: search",
  ];

  // Frames are in the document's order: each behind the frame it is in.
  const frames = [];
  const open = [];
  for (const element of root.querySelectorAll(".f")) {
    const lines = element.querySelector("title").textContent.split("\n");
    const frame = {
      element,
      label: element.querySelector("text"),
      name: lines[0],
      figures: lines.slice(1).join("  "),
      start: Number(element.dataset.o),
      size: Number(element.dataset.w),
      depth: Number(element.dataset.d),
      parent: null,
      children: [],
      shown: false,
    };
    open.length = frame.depth;
    if (frame.depth > 0) {
      frame.parent = open[frame.depth - 1];
      frame.parent.children.push(frame);
    }
    open.push(frame);
    frames.push(frame);
    element.setAttribute("role", "treeitem");
    element.setAttribute("aria-level", String(frame.depth + 1));
  }
  const byElement = new Map(frames.map((frame) => [frame.element, frame]));
  const top = frames[0];
  let zoomed = top;
  let current = top;

  // --- layout: in the window's width, in rows as high as the reader's letters need

  let letterPx = 7.23;
  let rowPx = 17;

  function measure() {
    const probe = document.createElementNS(SVG, "text");
    probe.textContent = "M".repeat(50);
    root.appendChild(probe);
    const box = probe.getBBox();
    probe.remove();
    if (box.width > 0) {
      letterPx = box.width / 50;
      rowPx = Math.max(17, Math.ceil(box.height * 1.15) + 1);
    }
  }

  function fit(text, px) {
    const letters = Math.floor(px / letterPx);
    if (text.length <= letters) return text;
    if (letters < 3) return "";
    const cut = text.slice(0, letters - 1);
    return (/[\ud800-\udbff]$/.test(cut) ? cut.slice(0, -1) : cut) + "\u2026";
  }

  function place(frame, x, width) {
    frame.shown = width >= LEAST_PX;
    const { element, label } = frame;
    if (!frame.shown) {
      element.setAttribute("display", "none");
      return;
    }
    element.removeAttribute("display");
    element.setAttribute("x", (MARGIN_PX + x).toFixed(2));
    element.setAttribute("y", String(headHeight + frame.depth * rowPx));
    element.setAttribute("width", width.toFixed(2));
    element.setAttribute("height", String(rowPx - 1));
    label.setAttribute("y", String(Math.round(rowPx * 0.72)));
    label.textContent = fit(frame.name, width - 2 * PAD_PX);
  }

  function layout() {
    const width = Math.max(root.clientWidth || root.getBoundingClientRect().width, 300);
    const inner = width - 2 * MARGIN_PX;
    const around = new Set();
    for (let up = zoomed.parent; up; up = up.parent) around.add(up);
    let deepest = 0;
    for (const frame of frames) {
      const scale = zoomed.size > 0 ? inner / zoomed.size : 0;
      const isIn = frame.start >= zoomed.start && frame.depth >= zoomed.depth &&
        frame.start + frame.size <= zoomed.start + zoomed.size;
      frame.element.classList.toggle("around", around.has(frame));
      if (around.has(frame)) place(frame, 0, inner);
      else if (isIn) place(frame, (frame.start - zoomed.start) * scale, frame.size * scale);
      else place(frame, 0, 0);
      if (frame.shown) deepest = Math.max(deepest, frame.depth);
    }
    root.setAttribute("height", String(headHeight + (deepest + 1) * rowPx + MARGIN_PX));
    const controls = root.querySelector(".controls-box");
    if (controls) {
      const room = Math.min(460, inner * 0.62);
      controls.setAttribute("x", (width - MARGIN_PX - room).toFixed(1));
      controls.setAttribute("width", room.toFixed(1));
    }
    tell(null);
  }

  // --- details

  function tell(frame) {
    const width = (root.clientWidth || 1200) - 2 * MARGIN_PX;
    if (!frame) {
      idle.forEach((text, i) => { detail[i].textContent = fit(text, width); });
      return;
    }
    detail[0].textContent = fit(frame.name, width);
    detail[1].textContent = fit(frame.figures, width);
  }

  function frameOf(target) {
    const element = target instanceof Element ? target.closest(".f") : null;
    return element ? byElement.get(element) : undefined;
  }

  // --- zoom

  function zoom(frame) {
    zoomed = frame;
    reset.disabled = frame === top;
    layout();
    choose(frame, false);
    tell(frame === top ? null : frame);
  }

  // --- search: text anywhere in a name, whatever its case

  function search(text) {
    const wanted = text.toLowerCase();
    let matched = 0;
    let found = 0;
    let until = -1; // what is inside a match counts with it
    for (const frame of frames) {
      const hit = wanted !== "" && frame.name.toLowerCase().includes(wanted);
      frame.element.classList.toggle("hit", hit);
      if (hit) {
        found += 1;
        if (frame.start >= until) {
          matched += frame.size;
          until = frame.start + frame.size;
        }
      }
    }
    root.classList.toggle("searching", wanted !== "");
    const share = total > 0 ? (100 * matched) / total : 0;
    result.textContent = wanted === "" ? "" : `${share.toFixed(2)}% (${found})`;
    result.title = wanted === "" ? "" : `${found} frames match; they hold ${share.toFixed(2)}%`;
  }

  // --- controls

  function make(name, attributes) {
    const element = document.createElementNS(XHTML, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  }

  const box = document.createElementNS(SVG, "foreignObject");
  box.setAttribute("class", "controls-box");
  box.setAttribute("y", "2");
  box.setAttribute("height", "40");
  const bar = make("div", { class: "controls" });
  const result = make("output", { class: "matched", "aria-live": "polite" });
  const field = make("input", {
    type: "search", placeholder: "Search  ( / )", "aria-label": "Search frames by name",
    spellcheck: "false", autocomplete: "off",
  });
  const reset = make("button", { type: "button" });
  reset.textContent = "Reset zoom";
  reset.disabled = true;
  bar.append(result, field, reset);
  box.appendChild(bar);
  head.appendChild(box);
  field.addEventListener("input", () => search(field.value));
  reset.addEventListener("click", () => {
    zoom(top);
    choose(current, true); // a button that is disabled loses the focus, to nobody
  });

  // --- keyboard: one frame is in the order of Tab, arrows go from it

  function choose(frame, focus) {
    current.element.removeAttribute("tabindex");
    current = frame;
    frame.element.setAttribute("tabindex", "0");
    if (focus) {
      frame.element.focus();
      tell(frame);
    }
  }

  function beside(frame, step) {
    let at = frames.indexOf(frame) + step;
    while (at >= 0 && at < frames.length) {
      if (frames[at].depth === frame.depth && frames[at].shown) return frames[at];
      at += step;
    }
    return null;
  }

  function inside(frame) {
    const shown = frame.children.filter((child) => child.shown);
    return shown.reduce((best, child) => (best && best.size >= child.size ? best : child), null);
  }

  const moves = {
    ArrowUp: (frame) => frame.parent,
    ArrowDown: inside,
    ArrowLeft: (frame) => beside(frame, -1),
    ArrowRight: (frame) => beside(frame, 1),
    Home: () => top,
  };

  function onKey(event) {
    const typing = event.target === field;
    if ((event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) ||
        (event.key.toLowerCase() === "f" && (event.ctrlKey || event.metaKey) && !event.shiftKey)) {
      field.focus();
      field.select();
      event.preventDefault();
    } else if (event.key === "Escape") {
      if (field.value !== "") {
        field.value = "";
        search("");
      } else if (zoomed !== top) {
        zoom(top);
      }
      if (typing || event.target === reset) choose(current, true);
      event.preventDefault();
    } else if (!typing && event.target !== reset) {
      if (event.key === "Enter" || event.key === " ") {
        if (frameOf(event.target)) {
          zoom(current);
          choose(current, true);
          event.preventDefault();
        }
      } else if (moves[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) {
        const next = moves[event.key](current);
        if (next) choose(next, true);
        event.preventDefault();
      }
    }
  }

  (alone ? document : root).addEventListener("keydown", onKey);
  root.addEventListener("click", (event) => {
    const frame = frameOf(event.target);
    if (frame) zoom(frame);
  });
  root.addEventListener("mouseover", (event) => tell(frameOf(event.target)));
  root.addEventListener("mouseleave", () => tell(null));
  root.addEventListener("focusin", (event) => {
    const frame = frameOf(event.target);
    if (frame) tell(frame);
  });

  root.querySelector(".frames").setAttribute("role", "tree");
  root.querySelector(".frames").setAttribute("aria-label", "Flamegraph");
  root.removeAttribute("viewBox");
  root.setAttribute("width", "100%");
  measure();
  choose(top, false);
  layout();
  window.addEventListener("resize", layout);
  if (alone) {
    // The heading and the details stay in sight.
    window.addEventListener("scroll", () => {
      head.setAttribute("transform", `translate(0 ${window.scrollY})`);
    });
  }
})();
