/** Something of the engine's memory that several hold: its caller by a number, work that uses it, models that were made from it. */
export class Shared {
  readonly #free: () => void;
  #holders = 1;

  /** Held once. `free` is called when nobody holds it any more. */
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

  /** Does work, and holds it meanwhile. */
  async during<T>(work: () => Promise<T>): Promise<T> {
    this.hold();
    try {
      return await work();
    } finally {
      this.release();
    }
  }
}
