/** Text as it comes. Not here: who makes it (`model.ts`). */
import { plain } from "../requests.js";
import type { GenerateOptions, GenerateResult, JobOptions } from "../types.js";

/** Starts a generation; pieces go to `piece`, which may make the model wait. */
type Start = (
  request: object,
  job: JobOptions,
  piece: (text: string, tokenId: number) => Promise<void>,
) => Promise<GenerateResult>;

/**
 * Text as it comes. `for await` gives pieces, and leaving the loop ends the generation; `text()` and `result()` wait for all
 * of it. It begins when it is first asked for anything.
 */
export class Generation implements AsyncIterable<string> {
  readonly #start: Start;
  readonly #what: string;
  readonly #request: object;
  readonly #job: JobOptions;
  readonly #stop = new AbortController();
  readonly #pieces: string[] = [];
  #result: Promise<GenerateResult> | undefined;
  #ended = false;
  /** Called when there is a piece, or none will come. */
  #wake: () => void = () => {};

  /** @internal */
  constructor(what: string, options: GenerateOptions, start: Start) {
    const { onProgress, signal, ...request } = options;
    this.#start = start;
    this.#what = what;
    this.#request = request;
    const either = signal ? AbortSignal.any([signal, this.#stop.signal]) : this.#stop.signal;
    this.#job = { signal: either, ...(onProgress && { onProgress }) };
  }

  /** All that is known of it, once it has ended. */
  result(): Promise<GenerateResult> {
    if (this.#result === undefined) {
      const piece = async (text: string) => {
        if (text === "") return;
        this.#pieces.push(text);
        this.#wake();
      };
      const begin = async () => this.#start(plain(this.#what, this.#request), this.#job, piece);
      this.#result = begin().finally(() => {
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

  async *[Symbol.asyncIterator](): AsyncGenerator<string, GenerateResult, undefined> {
    const result = this.result();
    try {
      for (;;) {
        const piece = this.#pieces.shift();
        if (piece !== undefined) yield piece;
        else if (this.#ended) return await result;
        else await new Promise<void>((resolve) => (this.#wake = resolve));
      }
    } finally {
      if (!this.#ended) {
        this.#stop.abort();
        await result.catch(() => {});
      }
    }
  }
}
