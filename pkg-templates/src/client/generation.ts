/** Text as it comes. Not here: who makes it (`model.ts`). */
import { jobOptions, plain } from "../requests.js";
import type { GenerateOptions as EngineOptions } from "../options.generated.js";
import type { GenerateOptions, GenerateResult, JobOptions, Piece } from "../types.js";

/** Starts a generation; pieces go to `piece`, which may make the model wait. */
type Start = (
  request: EngineOptions,
  job: JobOptions,
  piece: (text: string, tokenId: number) => Promise<void>,
) => Promise<GenerateResult>;

/**
 * Text as it comes. `for await` gives a piece for each token, and leaving the loop ends the generation; `text()` and `result()` wait for all
 * of it, and all of this as often as one likes. It begins when it is first asked for anything.
 */
export class Generation implements AsyncIterable<Piece> {
  readonly #start: Start;
  readonly #what: string;
  readonly #options: GenerateOptions;
  readonly #stop = new AbortController();
  readonly #pieces: Piece[] = [];
  /** Called when there is a piece, or none will come. */
  #waiting: (() => void)[] = [];
  #result: Promise<GenerateResult> | undefined;
  #ended = false;

  /** @internal */
  constructor(what: string, options: GenerateOptions, start: Start) {
    this.#what = what;
    this.#options = options;
    this.#start = start;
  }

  /** All that is known of it, once it has ended. */
  result(): Promise<GenerateResult> {
    if (this.#result === undefined) {
      this.#result = this.#begin().finally(() => {
        this.#ended = true;
        this.#wake();
      });
      // Whoever iterates hears of a failure there; it is no unhandled rejection here.
      this.#result.catch(() => {});
    }
    return this.#result;
  }

  /** The whole text. */
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
    // Not by `AbortSignal.any`, which is younger than some of the runtimes.
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
