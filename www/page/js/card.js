// The model card: facts about the checkpoint, and its memory at each precision.
import { el, facts } from "./dom.js";
import { bytes, count, parameters } from "./format.js";

const LAYOUTS = {
  dense: "floating point", "compressed-tensors": "quantized, compressed-tensors", gptq: "quantized, GPTQ", awq: "quantized, AWQ",
  bitnet: "ternary, BitNet", gguf: "GGUF",
};
const NAMES = { f32: "f32", f16: "f16", int8: "INT8", int4: "INT4", ternary: "ternary" };

export function modelCard({ checkpoint, label, from, plan }) {
  const { info } = checkpoint;
  const about = el("div", {},
    el("h3", {}, label),
    el("p", { class: "hint" }, from),
    facts([
      ["Architecture", info.architecture],
      ["Parameters", `${parameters(info.parameters)} (${count(info.parameters)})`],
      ["Weights", `${bytes(info.bytes)}, ${LAYOUTS[info.layout] ?? info.layout}`],
      ["Number formats", formats(info.linearFormats)],
      ["Tensors", count(info.tensors)],
      ["Layers", `${info.numHiddenLayers} × ${count(info.hiddenSize)} wide, MLP ${count(info.intermediateSize)}`],
      ["Heads", `${info.numAttentionHeads} for queries, ${info.numKeyValueHeads} for keys`],
      ["Vocabulary", `${count(info.vocabSize)}${info.tieWordEmbeddings ? ", head tied to the embedding" : ""}`],
      ["Context", `${count(info.maxPositionEmbeddings)} tokens`],
    ]),
    info.warnings.length > 0 && el("ul", { class: "notes" }, info.warnings.map((text) => el("li", {}, text))));
  return [about, memory(plan)];
}

function formats(linear) {
  const entries = Object.entries(linear ?? {});
  return entries.length === 0 ? undefined : entries.map(([name, modules]) => `${name} in ${modules} matrices`).join(", ");
}

/** A bar for each precision: the linear layers, which are quantized, and all other weights. */
function memory(plan) {
  const largest = Math.max(...plan.precisions.map((entry) => entry.weightBytes));
  const share = (value) => ({ vars: { "--w": `${(value / largest) * 100}%` } });
  const rows = plan.precisions.map((entry) => {
    const best = entry.precision === plan.recommendation.precision;
    return el("li", best ? { class: "best" } : {},
      el("span", { class: "name" }, NAMES[entry.precision] ?? entry.precision),
      el("span", { class: "track", "aria-hidden": "true" },
        el("i", share(entry.linearBytes)), el("i", share(entry.weightBytes - entry.linearBytes))),
      el("span", { class: "figures" }, el("b", {}, bytes(entry.weightBytes)), el("span", { class: "wordy" }, " of weights"), `, ${bytes(entry.totalBytes)} to run`));
  });
  return el("div", {},
    el("h3", {}, "Memory at each precision"),
    el("ul", { class: "bars" }, rows),
    el("p", { class: "key" }, el("span", { class: "linear" }, "linear layers, quantized"), el("span", { class: "kept" }, "embedding, head, norms, unchanged")),
    el("p", { class: "hint" }, `"To run" includes room for ${count(plan.context)} tokens. ★ ${NAMES[plan.recommendation.precision]} is recommended: ${plan.recommendation.reason}.`, fits(plan)));
}

/** The address space of 32-bit WebAssembly. */
const TAB = 4 * 2 ** 30;

function fits(plan) {
  const memory = Math.min((navigator.deviceMemory ?? 4) * 2 ** 30, TAB);
  const fitting = plan.precisions.find((entry) => entry.totalBytes <= memory);
  const what = fitting ? `${NAMES[fitting.precision]} ${fitting === plan.precisions[0] ? "and everything smaller fit" : "is the largest that fits"}` : "no precision fits";
  return ` With the ${Math.round(memory / 2 ** 30)} GiB that a tab can use here, ${what}.`;
}
