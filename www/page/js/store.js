// What the page knows, and who hears when that changes.
//
//   model     {checkpoint, label, files, shipped, plan}: what is open
//   runs      every quantization of it: {id, name, output, summary, seconds, report, ...}
//   run       the chosen one of them
//   unsaved   how many of them were made since one was last taken away
//   busy      the name of the long work that is under way, or undefined; there is one at a time
//   device    what models run on: "auto", "cpu" or "gpu"

export class Store {
  #state = { model: undefined, runs: [], run: undefined, unsaved: 0, busy: undefined, device: "auto" };
  #listeners = [];

  get() {
    return this.#state;
  }

  set(patch) {
    const changed = new Set(Object.keys(patch).filter((key) => this.#state[key] !== patch[key]));
    this.#state = { ...this.#state, ...patch };
    for (const [keys, listener] of this.#listeners) if (keys.some((key) => changed.has(key))) listener(this.#state);
  }

  /** Calls `listener` now, and after each change of one of `keys`. */
  on(keys, listener) {
    this.#listeners.push([keys, listener]);
    listener(this.#state);
  }

  /** A run with more known about it. */
  learn(id, patch) {
    const runs = this.#state.runs.map((run) => (run.id === id ? { ...run, ...patch } : run));
    const run = runs.find((run) => run.id === this.#state.run?.id);
    this.set({ runs, run });
  }
}
