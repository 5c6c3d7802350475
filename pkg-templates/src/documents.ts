/**
 * Documents as programs have them and as files: `perplexityIncrease` in JavaScript is `perplexity_increase` in
 * `validation_report.json`, which the command line writes too. The engine's results come spelled as programs have them.
 */
import type { Plan, QuantizationRecord, Summary, ValidationReport } from "./types.js";

/** What is in these is data: its names are nobody's fields. The crate has the same list. */
const DATA = new Set(["parameters", "linear_formats", "linearFormats"]);

/** A document of a file, as programs have it. */
export function fromFile(document: unknown): unknown {
  return renamed(document, (key) => key.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase()));
}

/**
 * The text of a file: a report that was saved so is one that the command line reads and other tools know. Names are spelled
 * `perplexity_increase` in it.
 */
export function fileText(document: ValidationReport | QuantizationRecord | Summary | Plan): string {
  // A figure in a name is a word of its own where a word ends before it: `klP99` is `kl_p99`, `top1Agreement` is `top1_agreement`.
  const snake = (key: string) => key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  return `${JSON.stringify(renamed(document, snake), null, 2)}\n`;
}

function renamed(value: unknown, name: (key: string) => string): unknown {
  if (Array.isArray(value)) return value.map((item) => renamed(item, name));
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => [name(key), DATA.has(key) ? inner : renamed(inner, name)]),
  );
}
