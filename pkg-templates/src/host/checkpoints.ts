/** The checkpoints that callers hold by number, each with its tokenizer once that was needed. */
import { LowbitError } from "../errors.js";
import type { MemoryFolder } from "../folders.js";
import type { Folder } from "../platform.js";
import type { CheckpointInfo } from "../types.js";
import type { CheckpointRef, Written } from "../wire.js";
import type { Meter } from "./jobs.js";
import type { EngineCheckpoint, Modules, Tokenizer } from "./modules.js";
import type { Place } from "./places.js";

/** A checkpoint, and its tokenizer once it was needed. */
export interface HeldCheckpoint {
  handle: EngineCheckpoint;
  tokenizer?: Promise<Tokenizer>;
  /** Where the tokenizer comes from, where that is another folder. */
  tokenizerFolder?: Folder;
  meter: Meter;
}

const TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

export class Checkpoints {
  readonly #modules: Modules;
  readonly #held = new Map<number, HeldCheckpoint>();
  /** Results that are nowhere but here, by the number of their checkpoint. */
  readonly #folders = new Map<number, MemoryFolder>();
  #nextId = 1;

  constructor(modules: Modules) {
    this.#modules = modules;
  }

  get(id: number): HeldCheckpoint {
    const held = this.#held.get(id);
    if (held === undefined) throw new LowbitError("invalid_argument", "the checkpoint was disposed of");
    return held;
  }

  keep(handle: EngineCheckpoint, meter: Meter, tokenizerFolder?: Folder): CheckpointRef {
    const id = this.#nextId++;
    this.#held.set(id, { handle, meter, ...(tokenizerFolder && { tokenizerFolder }) });
    return { id, info: handle.inspect() as CheckpointInfo };
  }

  /** Opens what was written, where that is possible. `gguf` is the name of the file, where it is one. */
  async written<T>(summary: T, place: Place, gguf?: string): Promise<Written<T>> {
    if (!place.readable) return { summary };
    const { Checkpoint } = this.#modules.engine;
    const file = gguf === undefined ? undefined : await place.existing.open(gguf);
    const handle = file ? await Checkpoint.openGguf(file as never) : await Checkpoint.open(place.existing as never, {});
    const checkpoint = this.keep(handle, { bytes: 0 });
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

  /** The tokenizer of a checkpoint, opened when it is first needed. */
  tokenizer(held: HeldCheckpoint): Promise<Tokenizer> {
    held.tokenizer ??= this.#openTokenizer(held);
    return held.tokenizer;
  }

  async dispose(id: number): Promise<void> {
    const held = this.#held.get(id);
    this.#held.delete(id);
    this.#folders.delete(id);
    held?.handle.free();
    (await held?.tokenizer?.catch(() => undefined))?.free();
  }

  async #openTokenizer({ handle, tokenizerFolder: folder }: HeldCheckpoint): Promise<Tokenizer> {
    const files = folder ? await readTokenizerFiles(folder) : await handle.tokenizerFiles();
    const name = folder?.name ?? (handle.inspect() as CheckpointInfo).path;
    const tokenizer = await this.#modules.tokenizer(name, files as Record<string, Uint8Array>, handle.bosTokenId);
    handle.checkTokenizer(tokenizer as never);
    return tokenizer;
  }
}

async function readTokenizerFiles(folder: Folder): Promise<Record<string, Uint8Array>> {
  const files: Record<string, Uint8Array> = {};
  for (const name of TOKENIZER_FILES) {
    const file = await folder.open(name);
    if (file !== undefined) files[name] = await file.read(0, file.size);
  }
  return files;
}
