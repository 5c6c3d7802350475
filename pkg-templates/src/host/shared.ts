/**
 * A reference count of an object in the engine's memory. Its caller, running work and models loaded from it hold it.
 */
export class Shared {
  readonly #free: () => void;
  #holders = 1;

  /** Starts with one holder. Calls `free` after the last release. */
  constructor(free: () => void) {
    this.#free = free;
  }

  hold(): void {
    this.#holders += 1;
  }

  release(): void {
    this.#holders -= 1;
    if (this.#holders === 0) this.#free();
  }

  /** Holds it while `work` runs. */
  async during<T>(work: () => Promise<T>): Promise<T> {
    this.hold();
    try {
      return await work();
    } finally {
      this.release();
    }
  }
}
