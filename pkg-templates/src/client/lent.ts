/** The caller's files, `fetch` functions and targets, which the engine side reaches by number. */
import type { ByteStream } from "../ambient.js";
import { asLowbitError, cancelled, LowbitError } from "../errors.js";
import { isBytes, unshared, type Remotes } from "../specs.js";
import type { FileWriter, RandomAccessFile } from "../types.js";
import { fetchWith, type Fetch } from "../urls.js";
import type { ClientFunctions } from "../wire.js";

type LentFunctions = Omit<ClientFunctions, "progress" | "told" | "piece">;

export class Lent {
  readonly #files = new Map<number, RandomAccessFile>();
  readonly #fetches = new Map<number, Fetch>();
  readonly #targets = new Map<number, (file: string) => unknown>();
  readonly #writers = new Map<number, FileWriter>();
  #nextId = 1;
  /** Why writing was given up; `undefined` before. */
  #over: LowbitError | undefined;

  /** A registry that keeps objects until `forget`. `apart`: the engine side is another thread. */
  keep(apart: boolean): Remotes {
    const ids: number[] = [];
    const keep = <T>(map: Map<number, T>, value: T): number => {
      const id = this.#nextId++;
      ids.push(id);
      map.set(id, value);
      return id;
    };
    return {
      apart,
      file: (file) => keep(this.#files, file),
      fetch: (fetcher, headers) => keep(this.#fetches, fetchWith(headers, fetcher)),
      target: (create) => keep(this.#targets, create),
      forget: () => ids.forEach((id) => [this.#files, this.#fetches, this.#targets].forEach((map) => map.delete(id))),
    };
  }

  /** Aborts all files that are being written, and later ones. */
  abandon(reason: LowbitError): void {
    this.#over = reason;
    for (const writer of this.#writers.values()) giveUp(writer, reason);
    this.#writers.clear();
  }

  /**
   * The functions for the engine side. Anything that the caller's code throws, even `undefined`, arrives as an error.
   */
  readonly functions: LentFunctions = guarded({
    readFile: async (id, offset, length) => {
      const file = this.#files.get(id);
      if (file === undefined) throw new LowbitError("io", "the file is no longer open");
      const bytes: unknown = await file.read(offset, length);
      if (isBytes(bytes)) return unshared(bytes);
      throw new LowbitError("invalid_argument", "expected `read` to give a Uint8Array but found something else");
    },
    fetchRange: async (id, url, range, ifRange) => {
      const get = this.#fetches.get(id);
      if (get === undefined) throw new LowbitError("io", "the checkpoint is no longer open");
      return get(url, range, ifRange);
    },
    createFile: async (target, file) => {
      const create = this.#targets.get(target);
      if (create === undefined) throw new LowbitError("io", "the target is no longer open");
      const made = await create(file);
      if (!isStream(made) && !isWriter(made)) {
        throw new LowbitError("invalid_argument", `${file}: expected a stream or a writer but found something else`);
      }
      const writer = isStream(made) ? made.getWriter() : made;
      if (this.#over !== undefined) {
        giveUp(writer, this.#over);
        throw this.#over;
      }
      const id = this.#nextId++;
      this.#writers.set(id, writer);
      return id;
    },
    writeFile: async (id, bytes) => void (await this.#writer(id).write(bytes)),
    closeFile: async (id) => {
      const closing = this.#writer(id);
      this.#writers.delete(id);
      await closing.close();
    },
    abortFile: async (id) => {
      const aborting = this.#writer(id);
      this.#writers.delete(id);
      await aborting.abort?.(cancelled());
    },
  });

  #writer(id: number): FileWriter {
    const found = this.#writers.get(id);
    if (found === undefined) throw new LowbitError("io", "the file is no longer being written");
    return found;
  }
}

/** Aborts a writer. Ignores failures. */
function giveUp(writer: FileWriter, reason: LowbitError): void {
  void (async () => writer.abort?.(reason))().catch(() => {});
}

function guarded(functions: LentFunctions): LentFunctions {
  const each = Object.entries(functions).map(([name, run]) => [
    name,
    async (...args: unknown[]) => {
      try {
        return await (run as (...args: unknown[]) => Promise<unknown>)(...args);
      } catch (error) {
        throw asLowbitError(error);
      }
    },
  ]);
  return Object.fromEntries(each) as LentFunctions;
}

function isStream(made: unknown): made is ByteStream {
  return typeof (made as { getWriter?: unknown } | null)?.getWriter === "function";
}

function isWriter(made: unknown): made is FileWriter {
  const { write, close } = (made ?? {}) as Partial<FileWriter>;
  return typeof write === "function" && typeof close === "function";
}
