// Histogram of a matrix's weights before and after quantization.
import { el, svg } from "../dom.js";
import { percent, short } from "../format.js";
import { canvas, frame, linear, rows, ticks } from "./axes.js";

const HEIGHT = 250;
const [LEFT, RIGHT, TOP, BOTTOM] = [52, 12, 22, 34];

export function histogram({ largest, width: bin, original, quantized }) {
  const top = Math.max(...original, ...quantized) || 1;
  const { element } = frame((width) => {
    const x = linear([-largest, largest], [LEFT, width - RIGHT]);
    const y = linear([0, top * 1.05], [HEIGHT - BOTTOM, TOP]);
    const steps = (shares) => shares.map((share, at) => {
      const [from, to] = [x(-largest + at * bin), x(-largest + (at + 1) * bin)];
      return `${from.toFixed(1)},${y(share).toFixed(1)} ${to.toFixed(1)},${y(share).toFixed(1)}`;
    }).join(" ");
    const area = (shares) => `${x(-largest)},${y(0)} ${steps(shares)} ${x(largest)},${y(0)}`;
    const marks = ticks(-largest, largest, width < 420 ? 4 : 6).map((value) =>
      svg("text", { x: x(value), y: HEIGHT - 12, "text-anchor": "middle" }, short(value).replace("-", "−")));
    return canvas(width, HEIGHT, "Share of the weights by value: a smooth curve for the original weights, separate steps for the quantized ones.",
      rows(ticks(0, top, 4), y, LEFT, width - RIGHT, (share) => percent(share, top < 0.05 ? 1 : 0)),
      svg("polygon", { class: "area second", points: area(quantized) }),
      svg("polyline", { class: "line second", points: steps(quantized) }),
      svg("polyline", { class: "line first", points: steps(original) }),
      svg("text", { x: LEFT, y: 8 }, "share of the weights, by value"), marks);
  });
  return el("div", {}, element, el("p", { class: "key" }, el("span", {}, "original"), el("span", { class: "second" }, "quantized")));
}
