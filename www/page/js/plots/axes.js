// Shared by the plots: a frame that redraws when its width changes, scales, and ticks.
import { el, svg } from "../dom.js";

/** An element that shows the `<svg>` from `draw(width)` and redraws it when its width changes. */
export function frame(draw) {
  const host = el("div", { class: "plot" });
  let drawn = 0;
  const redraw = () => {
    const width = Math.floor(host.clientWidth);
    if (width > 0) host.replaceChildren(draw(width));
    drawn = width;
  };
  new ResizeObserver(() => {
    if (Math.floor(host.clientWidth) !== drawn) redraw();
  }).observe(host);
  return { element: host, redraw };
}

/** An `<svg>` of the given size with an accessible name. */
export function canvas(width, height, label, ...children) {
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label }, ...children);
}

/** Maps values from a range onto pixels. */
export function linear([low, high], [from, to]) {
  const span = high - low || 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

export function logarithmic([low, high], pixels) {
  const scale = linear([Math.log(low), Math.log(high)], pixels);
  return (value) => scale(Math.log(value));
}

/** About `wanted` round values from `low` to `high`. */
export function ticks(low, high, wanted = 5) {
  const raw = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw);
  const first = Math.ceil(low / step - 1e-9);
  const count = Math.floor(high / step + 1e-9) - first;
  return Array.from({ length: count + 1 }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

/** 1, 2 and 5 times each power of ten between two values. */
export function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const factor of [1, 2, 5]) found.push(factor * 10 ** power);
  }
  const within = found.filter((value) => value >= low && value <= high);
  return within.length > 7 ? within.filter((value) => /^1/.test(value.toExponential())) : within;
}

/** Horizontal grid lines with their values at the left. */
export function rows(values, scale, left, right, write) {
  return values.map((value) => svg("g", {},
    svg("line", { class: "grid", x1: left, x2: right, y1: scale(value), y2: scale(value) }),
    svg("text", { x: left - 8, y: scale(value) + 4, "text-anchor": "end" }, write(value))));
}
