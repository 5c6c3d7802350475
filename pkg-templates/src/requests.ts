/** Reads what callers give, before it crosses to the engine: what is lost on that way must not be lost in silence. */
import { LowbitError } from "./errors.js";
import type { JobOptions } from "./types.js";

/** What a value is, for messages. */
export function kind(value: unknown): string {
  if (value === null || ["undefined", "number", "boolean"].includes(typeof value)) return String(value);
  if (Array.isArray(value)) return "an array";
  return typeof value === "object" ? "an object" : `a ${typeof value}`;
}

/** Refuses a value that is not as it has to be. */
export function expect(holds: boolean, what: string, expected: string, found: unknown): asserts holds {
  if (holds) return;
  throw new LowbitError("invalid_argument", `${what}: expected ${expected} but found ${kind(found)}`);
}

/** Options, where they are given at all. */
export function optionsOf<T extends object>(what: string, options: T | undefined): T {
  const given = options ?? {};
  expect(options !== null && typeof given === "object" && !Array.isArray(given), what, "an object of options", options);
  return given as T;
}

/** Options of long work, apart from what is asked for. */
export function jobOptions<T extends JobOptions>(what: string, options: T | undefined): [Omit<T, keyof JobOptions>, JobOptions] {
  const { onProgress, signal, ...rest } = optionsOf(what, options);
  const hears = onProgress === undefined || onProgress === null || typeof onProgress === "function";
  expect(hears, what, "`onProgress` to be a function", onProgress);
  const { aborted, addEventListener: add, removeEventListener: remove } = (signal ?? new AbortController().signal) as Partial<AbortSignal>;
  const stops = typeof aborted === "boolean" && typeof add === "function" && typeof remove === "function";
  expect(stops, what, "`signal` to be an AbortSignal", signal);
  return [rest, { onProgress: onProgress ?? undefined, signal: signal ?? undefined }];
}

/** Options as JSON can hold them. `what` is what messages call them; what is in them the engine looks at. */
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
    // An object that contains itself.
    throw new LowbitError("invalid_argument", `${what}: expected plain data`, { cause: error });
  }
}

/** Refuses an option that is not one of `names`: a misspelled one must not be taken for one that was left out. */
export function onlyKnown(what: string, options: object, names: readonly string[]): void {
  const unknown = Object.keys(options).find((name) => !names.includes(name));
  if (unknown === undefined) return;
  throw new LowbitError("invalid_argument", `${what}: unknown field \`${unknown}\`, expected one of ${names.join(", ")}`);
}

/** Token ids as the engine takes them. */
export function tokenIds(ids: Uint32Array | readonly number[]): Uint32Array {
  if (ids instanceof Uint32Array) return ids.slice();
  if (!Array.isArray(ids)) throw new LowbitError("invalid_argument", `expected token ids but found ${kind(ids)}`);
  const bad = ids.find((id: unknown) => !(Number.isInteger(id) && (id as number) >= 0 && (id as number) < 2 ** 32));
  if (bad !== undefined || ids.includes(undefined)) {
    throw new LowbitError("invalid_argument", `expected token ids but found ${String(bad)} among them`);
  }
  return Uint32Array.from(ids);
}

/** Text that is one string. */
export function stringOf(what: string, text: string): string {
  expect(typeof text === "string", what, "a string", text);
  return text;
}

/** What a method learns from, as the engine reads it. */
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
