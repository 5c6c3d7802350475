/**
 * Checks the caller's arguments before they are sent to the engine. A value that would get lost on the way is an error.
 */
import { LowbitError } from "./errors.js";
import type { JobOptions } from "./types.js";

/** Describes a value, for messages. */
export function kind(value: unknown): string {
  if (value === null || ["undefined", "number", "boolean"].includes(typeof value)) return String(value);
  if (Array.isArray(value)) return "an array";
  return typeof value === "object" ? "an object" : `a ${typeof value}`;
}

/** Throws `invalid_argument` unless `holds`. */
export function expect(holds: boolean, what: string, expected: string, found: unknown): asserts holds {
  if (holds) return;
  throw new LowbitError("invalid_argument", `${what}: expected ${expected} but found ${kind(found)}`);
}

/** The options, or an empty object if none are given. */
export function optionsOf<T extends object>(what: string, options: T | undefined): T {
  const given = options ?? {};
  expect(options !== null && typeof given === "object" && !Array.isArray(given), what, "an object of options", options);
  return given as T;
}

/** Separates the options of every job (`onProgress`, `signal`) from the others. */
export function jobOptions<T extends JobOptions>(what: string, options: T | undefined): [Omit<T, keyof JobOptions>, JobOptions] {
  const { onProgress, signal, ...rest } = optionsOf(what, options);
  const hears = onProgress === undefined || onProgress === null || typeof onProgress === "function";
  expect(hears, what, "`onProgress` to be a function", onProgress);
  const { aborted, addEventListener: add, removeEventListener: remove } = (signal ?? new AbortController().signal) as Partial<AbortSignal>;
  const stops = typeof aborted === "boolean" && typeof add === "function" && typeof remove === "function";
  expect(stops, what, "`signal` to be an AbortSignal", signal);
  return [rest, { onProgress: onProgress ?? undefined, signal: signal ?? undefined }];
}

/** The options as plain JSON data. `what` names them in messages. The engine checks their content. */
export function plain<T extends object>(what: string, options: T): T {
  const check = (name: string, value: unknown) => {
    const bad =
      typeof value === "number" ? !Number.isFinite(value) : ["function", "symbol", "bigint"].includes(typeof value);
    expect(!bad, what, `\`${name}\` to be left out or plain data`, value);
    return value;
  };
  try {
    return JSON.parse(JSON.stringify(options, check)) as T;
  } catch (error) {
    if (error instanceof LowbitError) throw error;
    // A circular object.
    throw new LowbitError("invalid_argument", `${what}: expected plain data`, { cause: error });
  }
}

/** Throws `invalid_argument` for an option that is not in `names`, so that no misspelled option is ignored. */
export function onlyKnown(what: string, options: object, names: readonly string[]): void {
  const unknown = Object.keys(options).find((name) => !names.includes(name));
  if (unknown === undefined) return;
  throw new LowbitError("invalid_argument", `${what}: unknown field \`${unknown}\`, expected one of ${names.join(", ")}`);
}

/** Checks and copies token ids for the engine. */
export function tokenIds(ids: Uint32Array | readonly number[]): Uint32Array {
  if (ids instanceof Uint32Array) return ids.slice();
  if (!Array.isArray(ids)) throw new LowbitError("invalid_argument", `expected token ids but found ${kind(ids)}`);
  const bad = ids.find((id: unknown) => !(Number.isInteger(id) && (id as number) >= 0 && (id as number) < 2 ** 32));
  if (bad !== undefined || ids.includes(undefined)) {
    throw new LowbitError("invalid_argument", `expected token ids but found ${String(bad)} among them`);
  }
  return Uint32Array.from(ids);
}

/** Checks that a text is a string. */
export function stringOf(what: string, text: string): string {
  expect(typeof text === "string", what, "a string", text);
  return text;
}

/** Calibration data in the engine's form. */
export function calibrationRequest<T extends { texts?: readonly string[]; tokens?: Uint32Array | readonly number[] }>(
  what: string, calibration: T | readonly string[],
): T | { texts: readonly string[] } {
  expect(typeof calibration === "object" && calibration !== null, what, "`calibration` to be texts or an object", calibration);
  if (isTexts(calibration)) return { texts: [...calibration] };
  const { tokens } = calibration;
  return tokens === undefined ? calibration : { ...calibration, tokens: [...tokenIds(tokens)] };
}

function isTexts(calibration: object): calibration is readonly string[] {
  return Array.isArray(calibration);
}
