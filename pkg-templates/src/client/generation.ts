/** A stream of generated text. Not here: the model (`model.ts`). */
import { jobOptions, plain } from "../requests.js";
import type { GenerateOptions as EngineOptions } from "../options.generated.js";
import type { GenerateOptions, GenerateResult, JobOptions, Piece } from "../types.js";

/** Starts a generation. The model waits for the promise that `piece` returns. */
type Start = (
  request: EngineOptions,
  job: JobOptions,
  piece: (text: string, tokenId: number) => Promise<void>,
) => Promise<GenerateResult>;

/**
 * A stream of generated text. `for await` yields one piece per token; leaving the loop stops the generation. `text()`
 * and `result()` wait for its end. It starts on the first use, and can be read any number of times.
 *
 * Fails with `context_overflow` if prompt and output exceed the model's context, `non_finite` if logits are NaN,
 * `cancelled` if the signal aborts.
 */
export class Generation implements AsyncIterable<Piece> {
  readonly #start: Start;
  readonly #what: string;
  readonly #options: GenerateOptions;
  readonly #stop = new AbortController();
  readonly #pieces: Piece[] = [];
  /** Called on a new piece and at the end. */
  #waiting: (() => void)[] = [];
  #result: Promise<GenerateResult> | undefined;
  #ended = false;

  /** @internal */
  constructor(what: string, options: GenerateOptions, start: Start) {
    this.#what = what;
    this.#options = options;
    this.#start = start;
  }

  /** Waits for the end, and returns text, token ids, timings and the reason for the end. */
  result(): Promise<GenerateResult> {
    if (this.#result === undefined) {
      this.#result = this.#begin().finally(() => {
        this.#ended = true;
        this.#wake();
      });
      // An iterating caller gets the failure from the loop. This avoids an unhandled rejection.
      this.#result.catch(() => {});
    }
    return this.#result;
  }

  /** Waits for the end, and returns the whole text. */
  async text(): Promise<string> {
    return (await this.result()).text;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Piece, GenerateResult, undefined> {
    const result = this.result();
    try {
      for (let at = 0; ; ) {
        if (at < this.#pieces.length) yield this.#pieces[at++]!;
        else if (this.#ended) return await result;
        else await new Promise<void>((resolve) => this.#waiting.push(resolve));
      }
    } finally {
      if (!this.#ended) {
        this.#stop.abort();
        await result.catch(() => {});
      }
    }
  }

  async #begin(): Promise<GenerateResult> {
    const [rest, { onProgress, signal }] = jobOptions(this.#what, this.#options);
    const request = plain(this.#what, rest);
    // Some supported runtimes lack `AbortSignal.any`.
    const stop = () => this.#stop.abort(signal?.reason);
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop);
    try {
      return await this.#start(request, { signal: this.#stop.signal, onProgress }, async (text, tokenId) => {
        this.#pieces.push({ text, tokenId });
        this.#wake();
      });
    } finally {
      signal?.removeEventListener("abort", stop);
    }
  }

  #wake(): void {
    for (const wake of this.#waiting.splice(0)) wake();
  }
}
