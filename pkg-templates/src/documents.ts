/**
 * Converts documents between camelCase in JavaScript and snake_case in files: `perplexityIncrease` is
 * `perplexity_increase` in `validation_report.json`, which the command line writes too. The engine's results are
 * camelCase.
 */
import type { Plan, QuantizationRecord, Summary, ValidationReport } from "./types.js";

/** Fields whose content is data: the names inside them are not converted. The crate has the same list. */
const DATA = new Set(["parameters", "linear_formats", "linearFormats"]);

/** A file's document with camelCase names. */
export function fromFile(document: unknown): unknown {
  return renamed(document, (key) => key.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase()));
}

/**
 * The JSON text of a report, for a file. Names are snake_case (`perplexity_increase`), as the command line reads and
 * writes them.
 */
export function fileText(document: ValidationReport | QuantizationRecord | Summary | Plan): string {
  // Only capitals begin a word: `klP99` is `kl_p99`, `top1Agreement` is `top1_agreement`.
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
