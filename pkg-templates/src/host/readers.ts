/** The jobs that read a checkpoint, and the bytes that they read. */
import { asLowbitError, cancelled, LowbitError } from "../errors.js";
import type { Folder, OpenFile } from "../platform.js";
import { unlessAborted, type Job } from "./jobs.js";

export class Readers {
  /** Bytes read so far. */
  bytes = 0;
  /** The folders being read. */
  readonly folders: Folder[] = [];
  readonly #jobs = new Set<Job>();
  #given = new AbortController();

  /** Runs a job that reads. */
  async during<T>(job: Job, work: () => Promise<T>): Promise<T> {
    const look = () => this.#look();
    this.#jobs.add(job);
    job.signal.addEventListener("abort", look);
    try {
      return await work();
    } catch (error) {
      throw explained(error, this.folders);
    } finally {
      job.signal.removeEventListener("abort", look);
      this.#jobs.delete(job);
      look();
    }
  }

  /**
   * Reads, unless every job was cancelled. The bindings do not say for which job they read, so a read continues until
   * all running jobs are cancelled.
   */
  async read<T>(read: (signal: AbortSignal) => Promise<T>): Promise<T> {
    if (this.#unwanted()) throw cancelled();
    const { signal } = this.#given;
    return unlessAborted(signal, () => read(signal));
  }

  /** The file, with its bytes counted. */
  metered(file: OpenFile): OpenFile {
    return {
      name: file.name,
      size: file.size,
      read: async (offset, length) => {
        const bytes = await this.read((signal) => file.read(offset, length, signal));
        this.bytes += bytes.length;
        return bytes;
      },
    };
  }

  #unwanted(): boolean {
    return this.#jobs.size > 0 && [...this.#jobs].every(({ signal }) => signal.aborted);
  }

  #look(): void {
    if (!this.#unwanted()) return;
    this.#given.abort();
    this.#given = new AbortController();
  }
}

/**
 * Adds the server's answer to an error about a missing file. The engine knows which files are needed, but not why one
 * is missing.
 */
function explained(error: unknown, folders: readonly Folder[]): unknown {
  const { code, message } = asLowbitError(error);
  const words = message.match(/[^\s`"',:()]+/g) ?? [];
  for (const { name, missing } of folders) {
    // A job can read several checkpoints. The engine names each by its place, without the trailing `/`.
    const file = message.includes(name.replace(/\/+$/, "")) ? words.find((word) => missing?.has(word)) : undefined;
    if (file === undefined) continue;
    const { why, code: other = code } = missing!.get(file)!;
    return new LowbitError(other, `${message}: for ${file} ${why}`, { cause: error });
  }
  return error;
}
