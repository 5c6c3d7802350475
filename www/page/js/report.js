// Shows a validation report: verdict, criteria, figures, plots, failures.
import { breaksAt, seen } from "./broken.js";
import { el, show } from "./dom.js";
import { bytes, change, count, percent, perplexity, scheme, short } from "./format.js";
import { histogram } from "./plots/histogram.js";
import { snrPlot } from "./plots/snr.js";
import { criterion, failureName, headline, word } from "./verdict.js";
import { distributions } from "./weights.js";
import { failure } from "./jobs.js";

export function reportView(store, model, run) {
  const { report } = run;
  const { text, status } = headline(report);
  const chooser = weightView(store, model, run);
  const bySnr = snrPlot(report.layers, chooser.choose);
  chooser.follow(bySnr.mark);
  return el("div", { class: "report" },
    el("div", { class: `verdict ${status}`, role: "status" },
      el("p", { class: "word" }, text), el("p", {}, sentence(report.recommendation.replace(/^(?:accepted|rejected): /, ""))), el("p", { class: "hint" }, run.name)),
    figures(report),
    criteria(report),
    el("div", { class: "plots" }, figure("Signal-to-noise ratio of each matrix", bySnr.element), chooser.element),
    layerTable(report),
    failures(report.generation));
}

const sentence = (text) => (text === "" ? "" : `${text[0].toUpperCase()}${text.slice(1).replace(/\.?$/, ".")}`);

function figure(caption, ...children) {
  return el("figure", {}, el("div", { class: "head" }, el("h3", {}, caption)), ...children);
}

function figures({ perplexity: texts, divergence, memory, speed, dataset, execution }) {
  const pairs = [
    ["Perplexity", perplexity(texts.quantized), `was ${perplexity(texts.original)}, ${change(texts.increase)}`],
    ["KL divergence", short(divergence.klMean), `nats per token; 99th percentile ${short(divergence.klP99)}`],
    ["Top-1 agreement", percent(divergence.top1Agreement, 1), "of next tokens"],
    ["Linear layers", `${short(memory.ratio)}× smaller`, `${bytes(memory.originalBytes)} became ${bytes(memory.quantizedBytes)}`],
    speed && ["Speed", `${short(speed.ratio)}×`, `${short(speed.quantizedTokensPerSecond)} tokens/s, was ${short(speed.originalTokensPerSecond)}, on ${speed.device.replace(/^cpu\b.*/, "the CPU")}`],
    ["Evaluated on", `${count(dataset.tokens)} tokens`, `${dataset.name}; ${execution === "side-by-side" ? "both models at once" : "layer by layer"}`],
  ].filter(Boolean);
  return el("dl", { class: "big" }, pairs.map(([name, value, more]) => el("div", {}, el("dt", {}, name), el("dd", {}, value, el("small", {}, more)))));
}

function criteria(report) {
  const rows = report.criteria.map(criterion).map(({ asks, limit, value, status }) =>
    el("tr", {}, el("th", { scope: "row" }, `${asks} `, el("span", { class: "limit" }, limit)), el("td", { class: "n" }, value),
      el("td", {}, el("span", { class: `badge ${status}` }, word(status)))));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Criteria" }, el("table", {},
    el("caption", {}, "Limits, set before the validation"),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Criterion"), el("th", { scope: "col", class: "n" }, "Measured"), el("th", { scope: "col" }, "Result"))),
    el("tbody", {}, rows)));
}

function layerTable({ layers }) {
  const rows = layers.map((layer) => el("tr", {}, el("th", { scope: "row" }, layer.name), el("td", { class: "scheme" }, scheme(layer.scheme)),
    el("td", { class: "n" }, layer.snrDb === null ? "exact" : `${layer.snrDb.toFixed(1)} dB`), el("td", { class: "n" }, short(layer.maxAbsError))));
  const heads = [["Matrix"], ["Scheme"], ["SNR", "n"], ["Largest error", "n"]];
  return el("details", { class: "more" }, el("summary", {}, "Table of all matrices"),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Quantization error of each matrix" }, el("table", {},
      el("thead", {}, el("tr", {}, heads.map(([name, kind]) => el("th", { scope: "col", class: kind }, name)))), el("tbody", {}, rows))));
}

/** The weights of one matrix before and after quantization, with a list to select the matrix. */
function weightView(store, model, run) {
  const select = el("select", { id: "weights-of" }, run.report.layers.map(({ name }) => el("option", { value: name }, name)));
  const plot = el("div");
  let heard = () => {};
  let asked = 0;
  const draw = async () => {
    const name = select.value;
    const mine = (asked += 1);
    heard(name);
    try {
      const found = await distributions(model, run, name);
      if (mine === asked) show(plot, histogram(found));
    } catch (error) {
      if (mine === asked) show(plot, failure("The weights", error));
    }
  };
  select.addEventListener("change", draw);
  const least = run.report.layers.reduce((a, b) => ((b.snrDb ?? Infinity) < (a.snrDb ?? Infinity) ? b : a), run.report.layers[0]);
  if (least) select.value = least.name;
  const element = el("figure", {},
    el("div", { class: "head" }, el("h3", {}, "Weights before and after"), el("label", {}, el("span", { class: "offscreen" }, "Matrix"), select)), plot);
  return {
    element,
    choose: (name) => {
      select.value = name;
      draw();
    },
    follow: (listener) => {
      heard = listener;
      if (least) draw();
    },
  };
}

function failures({ prompts, failures: found }) {
  const heading = el("h3", {}, "Generated text");
  if (found.length === 0) return el("section", {}, heading, el("p", {}, `No failures in ${count(prompts)} continuations: no endless repetition, no degenerate text, no empty output.`));
  return el("section", {}, heading,
    el("p", {}, `${found.length} ${found.length === 1 ? "failure" : "failures"} in ${count(prompts)} continuations.`),
    found.map((failed) => el("div", { class: failed.originalAlso ? "failure old" : "failure" },
      el("p", {}, el("strong", {}, sentence(failureName(failed.kind))), failed.originalAlso && " The original fails on this prompt too."),
      wrote(failed), el("p", { class: "hint" }, sentence(failed.detail)))));
}

/** The prompt and the quantized model's continuation, highlighted from where it fails. */
function wrote(failed) {
  const { prompt, text } = failed;
  const at = breaksAt(failed);
  return el("blockquote", {}, el("span", { class: "given" }, seen(prompt.trimStart())), seen(text.slice(0, at)),
    at !== undefined && el("mark", {}, seen(text.slice(at)) || "…"),
    text.trim() === "" && el("em", {}, " (no visible text)"));
}
