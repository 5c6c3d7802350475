/// <reference lib="esnext.disposable" preserve="true" />
/** Checkpoints that the engine's side holds, and what jobs wrote. */
import { LowbitError } from "../errors.js";
import { stringOf, tokenIds } from "../requests.js";
import type { CheckpointInfo } from "../types.js";
import type { CheckpointRef, Written } from "../wire.js";
import type { Engine } from "./engine.js";

const ids = new WeakMap<Checkpoint, number | undefined>();

/** The number of a checkpoint on the engine's side. */
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
      : "the result was written to streams, which this package cannot read; open it from where it went",
  );
}

/** An open checkpoint: what it is, and its tokenizer. Models are loaded from it with `loadModel`. */
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

  /** Whether this package can read it: false for a result that went to streams. */
  get readable(): boolean {
    return this.#info !== undefined;
  }

  /** Architecture, sizes, number formats. */
  get info(): CheckpointInfo {
    if (this.#info === undefined) idOf(this);
    return this.#info!;
  }

  /** The ids of a prompt, with the tokens that the model expects in front. */
  async tokenize(text: string): Promise<Uint32Array> {
    const given = stringOf("tokenize", text);
    return this.engine.connection.ask([this], (remote) => remote.encode({ checkpoint: idOf(this) }, given));
  }

  /** The text of ids, without special tokens. */
  async detokenize(ids: Uint32Array | readonly number[]): Promise<string> {
    const given = tokenIds(ids);
    return this.engine.connection.ask([this], (remote) => remote.decode({ checkpoint: idOf(this) }, given));
  }

  /** Gives back what the engine holds for it. Models that were loaded from it go on. */
  dispose(): void {
    ids.set(this, undefined);
    this.#forget();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** What a job wrote: a checkpoint, unless it went to streams, and the record of the job. */
export class Output<T> extends Checkpoint {
  /** What was done, and what was lost by it. */
  readonly summary: T;
  readonly #folder: number | undefined;

  /** @internal */
  constructor(engine: Engine, written: Written<T>) {
    super(engine, written.checkpoint);
    this.summary = written.summary;
    this.#folder = written.folder;
  }

  /** Copies of the files, by name, of a result that was kept in memory. */
  async files(): Promise<Record<string, Uint8Array>> {
    const folder = this.#folder;
    if (folder === undefined) {
      throw new LowbitError("invalid_argument", "the files are at the target; only results in memory are handed out");
    }
    idOf(this);
    return this.engine.connection.ask([this], (remote) => remote.files(folder));
  }
}

