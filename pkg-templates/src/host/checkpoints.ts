/** The checkpoints that callers hold by number, each with its tokenizer once that was needed. */
import { LowbitError } from "../errors.js";
import type { MemoryFolder } from "../folders.js";
import type { Folder } from "../platform.js";
import type { CheckpointRef, Written } from "../wire.js";
import { unlessAborted, type Job } from "./jobs.js";
import type { EngineCheckpoint, Modules, Tokenizer } from "./modules.js";
import type { Place } from "./places.js";
import { Readers } from "./readers.js";
import { Shared } from "./shared.js";
import { meteredFolder } from "./sources.js";

/** A checkpoint, and its tokenizer once it was needed. */
export interface HeldCheckpoint {
  handle: EngineCheckpoint;
  tokenizer?: Promise<Tokenizer>;
  /** Where the tokenizer comes from, where that is another folder. */
  tokenizerFolder?: Folder;
  readers: Readers;
  shared: Shared;
}

const TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json"];

export class Checkpoints {
  readonly #modules: Modules;
  readonly #held = new Map<number, HeldCheckpoint>();
  /** Results that are nowhere but here, by the number of their checkpoint. */
  readonly #folders = new Map<number, MemoryFolder>();
  #nextId = 1;

  constructor(modules: Modules) {
    this.#modules = modules;
  }

  /** Where it is not used for longer than a moment. */
  get(id: number): HeldCheckpoint {
    const held = this.#held.get(id);
    if (held === undefined) throw new LowbitError("invalid_argument", "the checkpoint was disposed of");
    return held;
  }

  /** Does work that reads checkpoints; they stay until it has ended, whoever disposes of them. */
  use<T>(job: Job, ids: readonly number[], work: (...held: HeldCheckpoint[]) => Promise<T>): Promise<T> {
    const held = ids.map((id) => this.get(id));
    let run = () => work(...held);
    for (const each of held) {
      const inner = run;
      run = () => useHeld(job, each, inner);
    }
    return run();
  }

  keep(handle: EngineCheckpoint, readers: Readers, tokenizerFolder?: Folder): CheckpointRef {
    const info = handle.inspect();
    const id = this.#nextId++;
    const shared = new Shared(() => {
      handle.free();
      // Opening it holds the checkpoint, so it is open by now, or never will be.
      void held.tokenizer?.then((tokenizer) => tokenizer.free(), () => {});
    });
    const held: HeldCheckpoint = { handle, readers, shared, ...(tokenizerFolder && { tokenizerFolder }) };
    this.#held.set(id, held);
    return { id, info };
  }

  /** Opens what was written, where that is possible. `gguf` is the name of the file, where it is one. */
  async written<T>(summary: T, place: Place, gguf?: string): Promise<Written<T>> {
    if (!place.readable) return { summary };
    const { Checkpoint } = this.#modules.engine;
    const readers = new Readers();
    const file = gguf === undefined ? undefined : await place.target.existing.open(gguf);
    const handle = file
      ? await Checkpoint.openGguf(readers.metered(file))
      : await Checkpoint.open(meteredFolder(place.target.existing, readers), {});
    const checkpoint = this.keep(handle, readers);
    if (place.memory === undefined) return { summary, checkpoint };
    this.#folders.set(checkpoint.id, place.memory);
    return { summary, checkpoint, folder: checkpoint.id };
  }

  /** Copies of the files of a result in memory. */
  files(id: number): Record<string, Uint8Array> {
    const folder = this.#folders.get(id);
    if (folder === undefined) throw new LowbitError("invalid_argument", "the output was disposed of");
    return folder.copies();
  }

  /** The tokenizer of a checkpoint that a job uses, opened when it is first needed. */
  tokenizer(job: Job, held: HeldCheckpoint): Promise<Tokenizer> {
    if (held.tokenizer === undefined) {
      const opening = held.shared.during(() => this.#openTokenizer(held));
      held.tokenizer = opening;
      // What failed may do the next time: the network was away, or the work was stopped.
      opening.catch(() => delete held.tokenizer);
    }
    const { tokenizer } = held;
    return unlessAborted(job.signal, () => tokenizer);
  }

  dispose(id: number): void {
    const held = this.#held.get(id);
    this.#held.delete(id);
    this.#folders.delete(id);
    held?.shared.release();
  }

  end(): void {
    for (const id of [...this.#held.keys()]) this.dispose(id);
  }

  async #openTokenizer({ handle, tokenizerFolder: folder }: HeldCheckpoint): Promise<Tokenizer> {
    const files = folder ? await readTokenizerFiles(folder) : await handle.tokenizerFiles();
    const name = folder?.name ?? handle.inspect().path;
    return this.#modules.tokenizer(name, files, handle.bosTokenId, handle.embeddingRows);
  }
}

/** Does work that reads a checkpoint, which stays meanwhile. */
export function useHeld<T>(job: Job, { shared, readers }: HeldCheckpoint, work: () => Promise<T>): Promise<T> {
  return shared.during(() => readers.during(job, work));
}

async function readTokenizerFiles(folder: Folder): Promise<Record<string, Uint8Array>> {
  const files: Record<string, Uint8Array> = {};
  for (const name of TOKENIZER_FILES) {
    const file = await folder.open(name);
    if (file !== undefined) files[name] = await file.read(0, file.size);
  }
  return files;
}
