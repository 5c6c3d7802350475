// What the form says, as options of the package. Nothing here touches the page, so that it can be tested without one.

const ATTENTION = ["*.self_attn.*"];
const MLP = ["*.mlp.*"];

/** A rule for some modules: other bits, or floating point as they were. */
function rule(modules, choice, groupSize) {
  if (choice === "keep") return { modules, keep: true };
  const bits = Number(choice);
  return { modules, bits, group_size: groupSize };
}

/** The recipe of mixed precision; undefined where all modules are the same. */
export function recipeOf({ attention, mlp, bits, groupSize }) {
  const differs = (choice) => choice !== "" && choice !== String(bits);
  const rules = [];
  if (differs(attention)) rules.push(rule(ATTENTION, attention, groupSize));
  if (differs(mlp)) rules.push(rule(MLP, mlp, groupSize));
  return rules.length === 0 ? undefined : { rules };
}

/** Whether a method learns from text. */
export const learns = (method) => method === "gptq" || method === "awq" || method === "auto";

/**
 * The options of `auto`. It begins at 4 bits whatever the size, so that a small model shows what is tried; `heldOut` is the text
 * that attempts are judged by.
 */
export function searchOptionsOf({ increase, samples }, text, heldOut) {
  return {
    bits: 4,
    samples: [samples, 4 * samples],
    calibration: { texts: [text] },
    texts: heldOut,
    name: "unseen stories",
    validate: { speedRounds: 0, limits: { maxPerplexityIncrease: increase } },
  };
}

/** The options of `quantize`. `choices` are the form's; `text` is what is learned from. */
export function optionsOf(choices, text) {
  const { method, bits, groupSize, symmetric, ternaryScale, samples } = choices;
  if (method === "ternary") return { method, ternaryScale };
  const recipe = recipeOf(choices);
  return {
    method, bits, groupSize, symmetric,
    ...(recipe && { recipe }),
    ...(learns(method) && { calibration: { texts: [text], samples } }),
  };
}

/** A run's name in the table. */
export function nameOf(choices) {
  const { method, bits, groupSize, symmetric, attention, mlp, ternaryScale } = choices;
  if (method === "ternary") return `Ternary, a scale for ${ternaryScale === "tensor" ? "each matrix" : "each row"}`;
  const parts = [`${method.toUpperCase()} INT${bits}`, groupSize === -1 ? "whole rows" : `groups of ${groupSize}`];
  if (!symmetric) parts.push("zero points");
  const mixed = [["attention", attention], ["MLP", mlp]].filter(([, choice]) => choice !== "" && choice !== String(bits));
  for (const [name, choice] of mixed) parts.push(`${name} ${choice === "keep" ? "as it was" : `INT${choice}`}`);
  return parts.join(", ");
}

/** Reads the form. */
export function choicesOf(form) {
  const given = new FormData(form);
  return {
    method: given.get("method"),
    bits: Number(given.get("bits")),
    groupSize: Number(given.get("groupSize")),
    symmetric: given.get("asymmetric") === null,
    attention: given.get("attention"),
    mlp: given.get("mlp"),
    ternaryScale: given.get("ternaryScale"),
    samples: Number(given.get("samples")),
    increase: Number(given.get("autoIncrease")) / 100,
  };
}
