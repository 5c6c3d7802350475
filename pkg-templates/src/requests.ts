/** Reads the options that callers give, before they cross to the engine: what is lost on that way must not be lost in silence. */
import { LowbitError } from "./errors.js";
import type { Calibration } from "./types.js";

/** Options as JSON can hold them. `what` is what messages call them. */
export function plain(what: string, options: object): object {
  return JSON.parse(
    JSON.stringify(options, (name: string, value: unknown) => {
      const bad =
        typeof value === "number" ? !Number.isFinite(value) : ["function", "symbol", "bigint"].includes(typeof value);
      if (!bad) return value;
      const found = typeof value === "number" ? value : `a ${typeof value}`;
      throw new LowbitError("invalid_argument", `${what}: expected \`${name}\` to be left out or plain data but found ${found}`);
    }),
  ) as object;
}

/** Refuses an option that is not one of `names`: a misspelled one must not be taken for one that was left out. */
export function onlyKnown(what: string, options: object | undefined, names: readonly string[]): void {
  const unknown = Object.keys(options ?? {}).find((name) => !names.includes(name));
  if (unknown === undefined) return;
  throw new LowbitError("invalid_argument", `${what}: unknown field \`${unknown}\`, expected one of ${names.join(", ")}`);
}

/** Token ids as the engine takes them. */
export function tokenIds(ids: Uint32Array | readonly number[]): Uint32Array {
  if (ids instanceof Uint32Array) return ids.slice();
  if (!Array.isArray(ids)) throw new LowbitError("invalid_argument", `expected token ids but found ${typeof ids}`);
  const bad = ids.find((id: unknown) => !(Number.isInteger(id) && (id as number) >= 0 && (id as number) < 2 ** 32));
  if (bad !== undefined || ids.includes(undefined)) {
    throw new LowbitError("invalid_argument", `expected token ids but found ${String(bad)} among them`);
  }
  return Uint32Array.from(ids);
}

export function calibrationRequest(calibration: Calibration | readonly string[]): object {
  if (isTexts(calibration)) return { texts: [...calibration] };
  const { tokens, ...rest } = calibration;
  return tokens === undefined ? rest : { ...rest, tokens: [...tokens] };
}

function isTexts(calibration: Calibration | readonly string[]): calibration is readonly string[] {
  return Array.isArray(calibration);
}
