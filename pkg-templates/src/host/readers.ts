/** Who reads a checkpoint, and how much was read of it. */
import { cancelled } from "../errors.js";
import type { OpenFile } from "../platform.js";
import { unlessAborted, type Job } from "./jobs.js";

export class Readers {
  /** Bytes read so far. */
  bytes = 0;
  readonly #jobs = new Set<Job>();
  #given = new AbortController();

  /** Does work that reads. */
  async during<T>(job: Job, work: () => Promise<T>): Promise<T> {
    const look = () => this.#look();
    this.#jobs.add(job);
    job.signal.addEventListener("abort", look);
    try {
      return await work();
    } finally {
      job.signal.removeEventListener("abort", look);
      this.#jobs.delete(job);
      look();
    }
  }

  /**
   * Reads, unless nobody waits for it any more. The bindings do not say for which job they read, so a read goes on until
   * every job that is under way was told to stop.
   */
  async read<T>(read: (signal: AbortSignal) => Promise<T>): Promise<T> {
    if (this.#unwanted()) throw cancelled();
    const { signal } = this.#given;
    return unlessAborted(signal, () => read(signal));
  }

  /** The file, with every byte counted. */
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
