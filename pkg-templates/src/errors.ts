/** The kind of a failure. Stable, so programs can branch on it. */
export type ErrorCode =
  | "invalid_argument"
  | "not_found"
  | "io"
  | "storage_full"
  | "invalid_checkpoint"
  | "unfinished_output"
  | "unsupported_model"
  | "unsupported_format"
  | "non_finite"
  | "tokenizer"
  | "context_overflow"
  | "out_of_memory"
  | "no_device"
  | "device_lost"
  | "shader_error"
  | "device_error"
  | "wrong_result"
  | "cancelled"
  /** A file changed while it was being read. */
  | "changed"
  /** The engine itself broke down, and is unusable. */
  | "internal";

/**
 * Every error of this package. `code` is stable. `message` is one sentence: the file or tensor, what was expected, what
 * was found.
 */
export class LowbitError extends Error {
  override readonly name = "LowbitError";
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.code = code;
  }
}

const CODES: ReadonlySet<string> = new Set<ErrorCode>([
  "invalid_argument", "not_found", "io", "storage_full", "invalid_checkpoint", "unfinished_output", "unsupported_model",
  "unsupported_format", "non_finite", "tokenizer", "context_overflow", "out_of_memory", "no_device", "device_lost",
  "shader_error", "device_error", "wrong_result", "cancelled", "changed", "internal",
]);

/** Codes by the platforms' error names: errno names of Node, names of DOMExceptions, classes of Deno's errors. */
const OF_PLATFORMS: Readonly<Record<string, ErrorCode>> = {
  ENOENT: "not_found",
  NotFoundError: "not_found",
  NotFound: "not_found",
  ENOSPC: "storage_full",
  EDQUOT: "storage_full",
  EFBIG: "storage_full",
  QuotaExceededError: "storage_full",
  AbortError: "cancelled",
  RuntimeError: "internal",
};

/** Any thrown value as a `LowbitError`. `place` names the file, if given. */
export function asLowbitError(thrown: unknown, place?: string): LowbitError {
  if (thrown instanceof LowbitError) return thrown;
  const of = thrown as { code?: unknown; name?: unknown; message?: unknown } | null | undefined;
  const message = typeof of?.message === "string" ? of.message : String(thrown);
  if (typeof of?.code === "string" && CODES.has(of.code)) {
    return new LowbitError(of.code as ErrorCode, message, { cause: thrown });
  }
  const known = OF_PLATFORMS[String(of?.code)] ?? OF_PLATFORMS[String(of?.name)];
  const code = known ?? "io";
  const text = code === "internal" ? `the engine broke down: ${message}` : message;
  return new LowbitError(code, place === undefined ? text : `${place}: ${text}`, { cause: thrown });
}

/** The error of a cancelled job. */
export function cancelled(reason?: unknown): LowbitError {
  return new LowbitError("cancelled", "cancelled before the end", { cause: reason });
}
