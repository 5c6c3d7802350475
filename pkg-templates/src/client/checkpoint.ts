/// <reference lib="esnext.disposable" preserve="true" />
/** Handles of checkpoints in the engine, and outputs of jobs. */
import { LowbitError } from "../errors.js";
import { stringOf, tokenIds } from "../requests.js";
import type { CheckpointInfo } from "../types.js";
import type { CheckpointRef, Written } from "../wire.js";
import type { Engine } from "./engine.js";

const ids = new WeakMap<Checkpoint, number | undefined>();

/** The checkpoint's number on the engine side. */
export function idOf(checkpoint: Checkpoint): number {
  if (!(checkpoint instanceof Checkpoint)) {
    throw new LowbitError("invalid_argument", "expected a checkpoint, as openCheckpoint gives it");
  }
  const id = ids.get(checkpoint);
  if (id !== undefined) return id;
  throw new LowbitError(
    "invalid_argument",
    checkpoint.readable
      ? "the checkpoint was disposed of"
      : "the result was written to streams, which cannot be read back; open it from where it was stored",
  );
}

/** An open checkpoint: its metadata and its tokenizer. `loadModel` loads a model from it. */
export class Checkpoint {
  /** @internal */
  readonly engine: Engine;
  readonly #info: CheckpointInfo | undefined;
  readonly #forget: () => void;

  /** @internal */
  constructor(engine: Engine, opened: CheckpointRef | undefined, forget: () => void = () => {}) {
    this.engine = engine;
    this.#info = opened?.info;
    ids.set(this, opened?.id);
    const id = opened?.id;
    this.#forget = engine.connection.watch(this, () => {
      forget();
      if (id !== undefined) engine.connection.tell((remote) => remote.disposeCheckpoint(id));
    });
  }

  /** Whether it can be read. False for a result that was written to streams. */
  get readable(): boolean {
    return this.#info !== undefined;
  }

  /** Architecture, sizes and number formats. Throws `invalid_argument` unless `readable`. */
  get info(): CheckpointInfo {
    if (this.#info === undefined) idOf(this);
    return this.#info!;
  }

  /**
   * The token ids of a prompt, with the leading tokens that the model expects. Rejects with `tokenizer` or `not_found`.
   */
  async tokenize(text: string): Promise<Uint32Array> {
    const given = stringOf("tokenize", text);
    return this.engine.connection.ask([this], (remote) => remote.encode({ checkpoint: idOf(this) }, given));
  }

  /** The text of token ids, without special tokens. */
  async detokenize(ids: Uint32Array | readonly number[]): Promise<string> {
    const given = tokenIds(ids);
    return this.engine.connection.ask([this], (remote) => remote.decode({ checkpoint: idOf(this) }, given));
  }

  /** Frees its memory in the engine. Models loaded from it continue to work. */
  dispose(): void {
    ids.set(this, undefined);
    this.#forget();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** The output of a job: a checkpoint with a summary. Outputs in streams are not `readable`. */
export class Output<T> extends Checkpoint {
  /** What the job did, and what it lost. */
  readonly summary: T;
  readonly #folder: number | undefined;

  /** @internal */
  constructor(engine: Engine, written: Written<T>) {
    super(engine, written.checkpoint);
    this.summary = written.summary;
    this.#folder = written.folder;
  }

  /** Copies of the files by name. Rejects with `invalid_argument` unless the result is in memory. */
  async files(): Promise<Record<string, Uint8Array>> {
    const folder = this.#folder;
    if (folder === undefined) {
      throw new LowbitError("invalid_argument", "the files are at the target; `files()` returns only results in memory");
    }
    idOf(this);
    return this.engine.connection.ask([this], (remote) => remote.files(folder));
  }
}

