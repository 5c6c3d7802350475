/// <reference lib="esnext.disposable" preserve="true" />
/** Handles of models in the engine: text, chats, logits, perplexity. */
import { LowbitError } from "../errors.js";
import { expect, jobOptions, onlyKnown, plain, stringOf, tokenIds } from "../requests.js";
import type { ChatMessage, GenerateOptions, JobOptions, ModelInfo, PerplexityOptions, PerplexityResult } from "../types.js";
import type { Checkpoint } from "./checkpoint.js";
import type { Connection } from "./connection.js";
import { Generation } from "./generation.js";

/** A model on a device. It handles one request at a time; others wait. */
export class Model {
  readonly #connection: Connection;
  #id: number | undefined;
  readonly #forget: () => void;
  /** Its device, precision of activations and context. */
  readonly info: ModelInfo;
  /** The checkpoint that it was loaded from. */
  readonly checkpoint: Checkpoint;
  /** Whether the checkpoint has a chat template. */
  readonly canChat: boolean;

  /** @internal */
  constructor(connection: Connection, checkpoint: Checkpoint, loaded: { id: number; info: ModelInfo; chat: boolean }) {
    this.#connection = connection;
    this.#id = loaded.id;
    this.info = loaded.info;
    this.checkpoint = checkpoint;
    this.canChat = loaded.chat;
    const { id } = loaded;
    this.#forget = connection.watch(this, () => connection.tell((remote) => remote.disposeModel(id)));
  }

  get #held(): number {
    if (this.#id === undefined) throw new LowbitError("invalid_argument", "the model was disposed of");
    return this.#id;
  }

  /** Continues a prompt: text, or token ids, which are used unchanged. */
  generate(prompt: string | Uint32Array | readonly number[], options: GenerateOptions = {}): Generation {
    return new Generation("generate", options, async (request, job, piece) => {
      const given = typeof prompt === "string" ? prompt : tokenIds(prompt);
      return this.#connection.run(job, [this], (remote, id) => remote.generate(id, this.#held, given, request), { piece });
    });
  }

  /**
   * Answers the last message of a chat, formatted by the checkpoint's chat template. Fails with `not_found` if there is
   * none, `tokenizer` if the template needs something unsupported.
   */
  chat(messages: readonly ChatMessage[], options: GenerateOptions = {}): Generation {
    return new Generation("chat", options, async (request, job, piece) => {
      expect(Array.isArray(messages), "chat", "an array of messages", messages);
      const given = plain("chat", messages) as ChatMessage[];
      return this.#connection.run(job, [this], (remote, id) => remote.chat(id, this.#held, given, request), { piece });
    });
  }

  /** The logits after each token: one array of `vocabSize` per id. */
  async logits(ids: Uint32Array | readonly number[], options: JobOptions = {}): Promise<Float32Array[]> {
    const [rest, job] = jobOptions("logits", options);
    onlyKnown("logits", rest, []);
    const given = tokenIds(ids);
    const all = await this.#connection.run(job, [this], (remote, id) => remote.logits(id, this.#held, given));
    const width = this.info.vocabSize;
    return Array.from(given, (_, row) => all.subarray(row * width, (row + 1) * width));
  }

  /**
   * Each token's log-probability given the tokens before it. The first has none, so the array is one shorter than
   * `ids`.
   */
  async logprobs(ids: Uint32Array | readonly number[], options: JobOptions = {}): Promise<Float64Array> {
    const rows = await this.logits(ids, options);
    return Float64Array.from(rows.slice(0, -1), (row, at) => {
      const largest = row.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
      const sum = row.reduce((total, value) => total + Math.exp(value - largest), 0);
      return row[Number(ids[at + 1])]! - largest - Math.log(sum);
    });
  }

  /**
   * Measures the perplexity of a text. Rejects with `invalid_argument` if the text is too short, `non_finite` if logits
   * are NaN.
   */
  async perplexity(text: string, options: PerplexityOptions = {}): Promise<PerplexityResult> {
    const [rest, job] = jobOptions("perplexity", options);
    const request = plain("perplexity", { ...rest, texts: stringOf("perplexity", text) });
    return this.#connection.run(job, [this], (remote, id) => remote.perplexity(id, this.#held, request));
  }

  /**
   * The token ids of a prompt, with the leading tokens that the model expects. Rejects with `tokenizer` or `not_found`.
   */
  async tokenize(text: string): Promise<Uint32Array> {
    const given = stringOf("tokenize", text);
    return this.#connection.ask([this], (remote) => remote.encode({ model: this.#held }, given));
  }

  /** The text of token ids, without special tokens. */
  async detokenize(ids: Uint32Array | readonly number[]): Promise<string> {
    const given = tokenIds(ids);
    return this.#connection.ask([this], (remote) => remote.decode({ model: this.#held }, given));
  }

  /** Frees the model's memory, on the GPU too, after its current work has ended. */
  dispose(): void {
    this.#id = undefined;
    this.#forget();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

