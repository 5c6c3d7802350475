// Plots size against perplexity, one point per run.
import { svg } from "../dom.js";
import { bytes, perplexity } from "../format.js";
import { canvas, frame, linear, logarithmic, logTicks, rows, ticks } from "./axes.js";

const HEIGHT = 300;
const [LEFT, RIGHT, TOP, BOTTOM] = [64, 28, 24, 44];

/** Above this ratio of perplexities the axis is logarithmic; on a linear axis the small ones would coincide. */
const WIDE = 8;

/** `points`: {label, size, perplexity, kind, chosen}. */
export function tradeoff(points) {
  const sizes = points.map(({ size }) => size);
  const levels = points.map((point) => point.perplexity);
  const [least, most] = [Math.min(...levels), Math.max(...levels)];
  const wide = most / least > WIDE;
  const pad = (most - least || least * 0.02) * 0.15;
  const range = wide ? [least / 1.3, most * 1.3] : [least - pad, most + pad];
  const label = `Size against perplexity. ${points.map((point) => `${point.label}: ${bytes(point.size)}, ${perplexity(point.perplexity)}`).join("; ")}.`;
  return frame((width) => {
    const x = linear([0, Math.max(...sizes) * 1.04], [LEFT, width - RIGHT]);
    const y = (wide ? logarithmic : linear)(range, [HEIGHT - BOTTOM, TOP]);
    const marks = ticks(0, Math.max(...sizes), width < 480 ? 3 : 6).map((value) =>
      svg("text", { x: x(value), y: HEIGHT - BOTTOM + 20, "text-anchor": "middle" }, value === 0 ? "0" : bytes(value)));
    const digits = wide ? undefined : Math.max(0, 1 - Math.floor(Math.log10(range[1] - range[0])));
    const write = (value) => (digits === undefined ? value.toLocaleString("en") : value.toFixed(Math.min(digits, 4)));
    const dots = points.map((point) => svg("g", {},
      svg("circle", { class: `dot ${point.kind}${point.chosen ? " chosen" : ""}`, cx: x(point.size), cy: y(point.perplexity), r: 7 }, svg("title", {}, point.label)),
      svg("text", { class: "strong", x: x(point.size), y: y(point.perplexity) - 12, "text-anchor": "middle" }, point.short)));
    return canvas(width, HEIGHT, label, rows(wide ? logTicks(...range) : ticks(...range, 6), y, LEFT, width - RIGHT, write),
      svg("text", { x: LEFT, y: 10 }, "perplexity, lower is better"),
      svg("text", { x: width - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, "bytes of weights"), marks, dots);
  }).element;
}
