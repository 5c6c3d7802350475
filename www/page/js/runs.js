// All runs: a table to select from, and a plot of size against perplexity.
import { byId, el, show } from "./dom.js";
import { bytes, change, perplexity, short } from "./format.js";
import { tradeoff } from "./plots/tradeoff.js";
import { headline } from "./verdict.js";

export function setUpRuns(store) {
  store.on(["runs", "run", "model", "busy", "originalTokensPerSecond"], (state) => {
    const host = byId("runs-body");
    if (state.runs.length === 0) return show(host, el("p", { class: "empty" }, "No runs yet."));
    const focused = document.activeElement?.id;
    show(host, table(store, state), plot(state));
    if (focused?.startsWith("run-")) byId(focused)?.focus();
  });
}

const HEADS = [["Run"], ["Bits", "n"], ["Size", "n"], ["Perplexity", "n"], ["Tokens/s", "n"], ["Verdict"]];

function table(store, { runs, run: chosen, model, busy, originalTokensPerSecond }) {
  const judged = runs.findLast((run) => run.report);
  const original = el("tr", {},
    el("th", { scope: "row", class: "unchosen" }, "Original"),
    cells("16.00", model.checkpoint.info.bytes, perplexityCell(judged?.report.perplexity.original), judged?.report.speed?.originalTokensPerSecond ?? originalTokensPerSecond),
    el("td", {}));
  if (model.checkpoint.info.layout !== "dense" || model.checkpoint.info.linearFormats?.F32) original.children[1].textContent = "–";
  const rows = runs.map((run) => el("tr", run === chosen ? { class: "chosen" } : {},
    el("th", { scope: "row" }, el("label", { class: "check" },
      el("input", { type: "radio", name: "run", id: `run-${run.id}`, checked: run === chosen, disabled: busy !== undefined, onchange: () => store.set({ run: store.get().runs.find(({ id }) => id === run.id) }) }),
      el("span", {}, `${run.id}. ${run.name}`))),
    cells(run.summary.record.bitsPerWeight.toFixed(2), run.summary.bytes, perplexityCell(run.report?.perplexity.quantized, run.report?.perplexity.increase), run.report?.speed?.quantizedTokensPerSecond ?? run.tokensPerSecond),
    el("td", {}, verdict(run.report))));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Runs" }, el("table", {},
    el("caption", {}, "Bits per quantized weight, and the size of all weights. ", el("span", { class: "narrow" }, "Scroll right for more →")),
    el("thead", {}, el("tr", {}, HEADS.map(([name, kind]) => el("th", { scope: "col", class: kind }, name)))),
    el("tbody", {}, original, rows)));
}

const perplexityCell = (value, increase) => (value === undefined ? "–" : `${perplexity(value)}${increase === undefined ? "" : ` (${change(increase)})`}`);

function cells(bits, size, quality, speed) {
  return [bits, bytes(size), quality, speed ? short(speed) : "–"].map((text) => el("td", { class: "n" }, text));
}

function verdict(report) {
  if (report === undefined) return el("span", { class: "badge none" }, "not validated");
  const { text, status } = headline(report);
  return el("span", { class: `badge ${status}` }, text.split(".")[0].replace(/^The quality is kept, but it is/, "Quality kept,"));
}

/** The plot of size against perplexity. Only runs validated on the same text are comparable. */
function plot({ runs, run: chosen, model }) {
  const judged = runs.filter((run) => run.report?.perplexity.quantized);
  const last = (chosen?.report ? chosen : judged.at(-1))?.report;
  const alike = judged.filter((run) => run.report.dataset.sha256 === last?.dataset.sha256);
  if (alike.length === 0) return el("p", { class: "hint" }, "Validate a run to plot its size against its perplexity.");
  const points = alike.map((run) => ({
    label: run.name, short: String(run.id), size: run.summary.bytes, perplexity: run.report.perplexity.quantized, kind: "second", chosen: run === chosen,
  }));
  points.push({ label: "Original", short: "original", size: model.checkpoint.info.bytes, perplexity: last.perplexity.original, kind: "first" });
  const apart = judged.length - alike.length;
  return el("figure", {}, el("div", { class: "head" }, el("h3", {}, "Size against perplexity")), tradeoff(points),
    apart > 0 && el("figcaption", {}, `${apart} ${apart === 1 ? "run was" : "runs were"} validated on another text and cannot be compared.`));
}
