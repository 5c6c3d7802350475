// Turns the form's values into the package's options. Only `choicesOf` reads the form, so tests need no page.

const ATTENTION = ["*.self_attn.*"];
const MLP = ["*.mlp.*"];

/** A recipe rule: other bits for some modules, or keep them in floating point. */
function rule(modules, choice, groupSize) {
  if (choice === "keep") return { modules, keep: true };
  const bits = Number(choice);
  return { modules, bits, group_size: groupSize };
}

/** The mixed-precision recipe; undefined if all modules use the same bits. */
export function recipeOf({ attention, mlp, bits, groupSize }) {
  const differs = (choice) => choice !== "" && choice !== String(bits);
  const rules = [];
  if (differs(attention)) rules.push(rule(ATTENTION, attention, groupSize));
  if (differs(mlp)) rules.push(rule(MLP, mlp, groupSize));
  return rules.length === 0 ? undefined : { rules };
}

/** Whether a method needs calibration text. */
export const learns = (method) => method === "gptq" || method === "awq" || method === "auto";

/**
 * The options of `auto`. It starts at 4 bits for every model size, so a small model shows the attempts too.
 * `heldOut` is the text that attempts are validated on.
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

/** The options of `quantize`. `choices` come from `choicesOf`; `text` is the calibration text. */
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
  if (method === "ternary") return `Ternary, one scale per ${ternaryScale === "tensor" ? "matrix" : "row"}`;
  const parts = [`${method.toUpperCase()} INT${bits}`, groupSize === -1 ? "whole rows" : `groups of ${groupSize}`];
  if (!symmetric) parts.push("zero points");
  const mixed = [["attention", attention], ["MLP", mlp]].filter(([, choice]) => choice !== "" && choice !== String(bits));
  for (const [name, choice] of mixed) parts.push(`${name} ${choice === "keep" ? "not quantized" : `INT${choice}`}`);
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
