// A report's verdict and criteria in words. Does not touch the DOM.
import { change, count, short } from "./format.js";

const QUALITY = ["perplexity_increase", "benchmark_drop_points", "new_generation_failures"];

const share = (value) => `${short(value * 100)} %`;
const points = (value) => `${short(value)} points`;
const times = (value) => `${short(value)}×`;

/** For each criterion: its text, how to format its value, and how to format its limit if that differs. */
const CRITERIA = {
  perplexity_increase: ["Perplexity rises by at most", change, share],
  benchmark_drop_points: ["The benchmark drops by at most", points],
  new_generation_failures: ["New generation failures, at most", count],
  memory_ratio: ["Linear layers shrink by at least", times],
  speed_ratio: ["Speed is at least", times],
  reading_problems: ["Unread tensors, and differences of tokenizers, at most", count],
};

export function criterion({ name, limit, value, status }) {
  const [asks, write, writeLimit = write] = CRITERIA[name] ?? [name.replaceAll("_", " "), short];
  const limited = { asks, limit: writeLimit(limit) };
  // A skipped criterion has no value and is inconclusive. A value that is not a number has failed.
  if (value === null && status === "inconclusive") return { ...limited, value: "not measured", status: "none" };
  return { ...limited, value: value === null ? "not a number" : write(value), status };
}

/** The verdict in one line, and the status that colours it. */
export function headline({ accepted, criteria }) {
  if (accepted) return { text: "Accepted. The quality is kept.", status: "passed" };
  const failed = criteria.filter(({ status }) => status === "failed").map(({ name }) => name);
  if (failed.some((name) => QUALITY.includes(name))) return { text: "Rejected. Too much was lost.", status: "failed" };
  if (failed.includes("reading_problems")) return { text: "Rejected. The two checkpoints are not read completely and alike.", status: "failed" };
  const unsure = criteria.filter(({ status }) => status === "inconclusive").map(({ name }) => name);
  if (unsure.some((name) => QUALITY.includes(name))) return { text: "Inconclusive. The text is too short to decide.", status: "inconclusive" };
  const lacks = [...failed, ...unsure].map((name) => ({ memory_ratio: "not small enough", speed_ratio: "not fast enough here" })[name] ?? "not accepted");
  return { text: `The quality is kept, but it is ${lacks.join(" and ")}.`, status: "inconclusive" };
}

const WORDS = { passed: "✓ passed", failed: "✗ failed", inconclusive: "? inconclusive", none: "skipped" };
export const word = (status) => WORDS[status] ?? status;

const FAILURES = {
  repetition_loop: "repeats itself without end", degenerate_text: "degenerate text", non_finite_logits: "logits are not finite",
  empty_output: "only white space",
};
export const failureName = (kind) => FAILURES[kind] ?? kind.replaceAll("_", " ");
