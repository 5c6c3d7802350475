// Plots the signal-to-noise ratio of each matrix, block by block.
import { el, svg } from "../dom.js";
import { canvas, frame, linear, rows, ticks } from "./axes.js";

const HEIGHT = 250;
const [LEFT, RIGHT, TOP, BOTTOM] = [48, 8, 22, 34];

/** Least axis range in dB. Matrices quantized alike differ by a decibel or two; a smaller range exaggerates that. */
const LEAST_SPAN = 6;

const isAttention = (name) => name.includes("self_attn");
const block = (name) => /layers\.(\d+)\./.exec(name)?.[1];

/** Calls `choose(name)` when a matrix is clicked. The returned `mark(name)` highlights a matrix. */
export function snrPlot(layers, choose) {
  let chosen;
  const known = layers.filter(({ snrDb: snr }) => snr !== null);
  if (known.length === 0) return { element: el("p", { class: "hint" }, "No matrix has a rounding error."), mark: () => {} };
  const values = known.map(({ snrDb: snr }) => snr);
  const middle = (Math.min(...values) + Math.max(...values)) / 2;
  const half = Math.max(Math.max(...values) - Math.min(...values), LEAST_SPAN) * 0.6;
  const [low, high] = [middle - half, middle + half];
  const worst = known.reduce((a, b) => (b.snrDb < a.snrDb ? b : a));
  const label = `From ${Math.min(...values).toFixed(1)} to ${Math.max(...values).toFixed(1)} dB over ${known.length} matrices; lowest in ${worst.name}.`;

  const { element: plot, redraw } = frame((width) => {
    const x = linear([-0.5, known.length - 0.5], [LEFT, width - RIGHT]);
    const y = linear([low, high], [HEIGHT - BOTTOM, TOP]);
    const radius = Math.max(2, Math.min(5.5, (width - LEFT) / known.length / 2.6));
    const dots = known.map((layer, at) => {
      const kind = isAttention(layer.name) ? "first" : "second";
      const dot = svg("circle", { class: `dot ${kind}${layer.name === chosen ? " chosen" : ""}`, cx: x(at), cy: y(layer.snrDb), r: radius, onclick: () => choose(layer.name) },
        svg("title", {}, `${layer.name}: ${layer.snrDb.toFixed(1)} dB`));
      return svg("g", {}, svg("line", { class: "stem", x1: x(at), x2: x(at), y1: HEIGHT - BOTTOM, y2: y(layer.snrDb) }), dot);
    });
    return canvas(width, HEIGHT, label, rows(ticks(low, high, 4), y, LEFT, width - RIGHT, (value) => `${String(value).replace("-", "−")} dB`),
      svg("text", { x: LEFT, y: 8 }, "higher is better"), dots, blocks(x, width));
  });

  /** Labels each block below its first matrix, as many as fit. */
  function blocks(x, width) {
    const firsts = known.map((layer, at) => [block(layer.name), at]).filter(([name, at], index, all) => name !== undefined && (at === 0 || all[index - 1]?.[0] !== name));
    const every = Math.ceil((firsts.length * 58) / (width - LEFT));
    return firsts.filter((_, index) => index % every === 0).map(([name, at]) =>
      svg("text", { x: x(at) - 5, y: HEIGHT - 12 }, `block ${name}`));
  }

  const key = el("p", { class: "key" }, el("span", { class: "round" }, "attention"), el("span", { class: "round second" }, "MLP"));
  return {
    element: el("div", {}, plot, key),
    mark: (name) => {
      chosen = name;
      redraw();
    },
  };
}
