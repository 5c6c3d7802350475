// The page's state, and the listeners that are called when it changes.
//
//   model         the open model: {checkpoint, plan, label, from, read, shipped, ...}
//   runs          every quantization of it: {id, name, output, summary, seconds, report, ...}
//   run           the selected run
//   unsaved       how many runs were made since the last save
//   busy          the name of the running job, or undefined; one job runs at a time
//   device        what models run on: "auto", "cpu" or "gpu"
//   capabilities  the package's `capabilities()`
//   originalTokensPerSecond   the original's speed in the last generation

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

  /** Calls `listener` now and after each change of one of `keys`. */
  on(keys, listener) {
    this.#listeners.push([keys, listener]);
    listener(this.#state);
  }

  /** Merges `patch` into a run. */
  learn(id, patch) {
    const runs = this.#state.runs.map((run) => (run.id === id ? { ...run, ...patch } : run));
    const run = runs.find((run) => run.id === this.#state.run?.id);
    this.set({ runs, run });
  }
}
