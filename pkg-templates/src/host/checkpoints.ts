/** Open checkpoints by number, each with its tokenizer, which is opened on first use. */
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

/** An open checkpoint. */
export interface HeldCheckpoint {
  handle: EngineCheckpoint;
  tokenizer?: Promise<Tokenizer>;
  /** The tokenizer's folder, if it is not the checkpoint's. */
  tokenizerFolder?: Folder;
  readers: Readers;
  shared: Shared;
}

const TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json"];

export class Checkpoints {
  readonly #modules: Modules;
  readonly #held = new Map<number, HeldCheckpoint>();
  /** Results in memory, by the number of their checkpoint. */
  readonly #folders = new Map<number, MemoryFolder>();
  #nextId = 1;

  constructor(modules: Modules) {
    this.#modules = modules;
  }

  /** A checkpoint for synchronous use. Longer work needs `use`. */
  get(id: number): HeldCheckpoint {
    const held = this.#held.get(id);
    if (held === undefined) throw new LowbitError("invalid_argument", "the checkpoint was disposed of");
    return held;
  }

  /** Runs work that reads checkpoints. They stay open until it ends, even if the caller disposes of them. */
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
      // Opening a tokenizer holds the checkpoint, so that has finished by now.
      void held.tokenizer?.then((tokenizer) => tokenizer.free(), () => {});
    });
    const held: HeldCheckpoint = { handle, readers, shared, ...(tokenizerFolder && { tokenizerFolder }) };
    this.#held.set(id, held);
    return { id, info };
  }

  /** Opens an output as a checkpoint, if it can be read. `gguf` is the file name of a GGUF output. */
  async written<T>(summary: T, place: Place, gguf?: string): Promise<Written<T>> {
    if (!place.readable) return { summary };
    const { Checkpoint } = this.#modules.engine;
    const readers = new Readers();
    const file = gguf === undefined ? undefined : await place.target.existing.open(gguf);
    const handle = file
      ? await Checkpoint.openGguf(readers.metered(file), {})
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

  /** The checkpoint's tokenizer, opened on first use. */
  tokenizer(job: Job, held: HeldCheckpoint): Promise<Tokenizer> {
    if (held.tokenizer === undefined) {
      const opening = held.shared.during(() => this.#openTokenizer(held));
      held.tokenizer = opening;
      // A later attempt may succeed, for instance when the network is back.
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
    return this.#modules.tokenizer(name, files, handle.bosTokenId, handle.embeddingRows, handle.allowUnknown);
  }
}

/** Runs work that reads a checkpoint, which stays open until it ends. */
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
