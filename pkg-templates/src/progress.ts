/** Throttles progress reports, and adds the remaining time. */
import type { Progress } from "./types.js";

type Reported = Omit<Progress, "etaSeconds">;

/** Minimal milliseconds between two reports. */
const APART_MS = 50;

/**
 * Passes on the newest report, each in its own timer callback. A busy thread gets several of a worker's messages at
 * once, and a page must be able to run and paint between two reports.
 */
export class Reporter {
  readonly #listener: (progress: Progress) => void;
  #newest: Reported | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #last = Number.NEGATIVE_INFINITY;
  #ended = false;
  /** The current phase, its start time in milliseconds, and the units done at its start. */
  #phase = "";
  #since = 0;
  #from = 0;

  constructor(listener: (progress: Progress) => void) {
    this.#listener = listener;
  }

  take(progress: Reported): void {
    if (this.#ended) return;
    this.#newest = progress;
    if (progress.phase !== this.#phase || progress.done < this.#from) {
      [this.#phase, this.#since, this.#from] = [progress.phase, performance.now(), progress.done];
    }
    const wait = Math.max(0, this.#last + APART_MS - performance.now());
    this.#timer ??= setTimeout(() => this.#report(), wait);
  }

  /** Stops reporting. */
  end(): void {
    this.#ended = true;
    clearTimeout(this.#timer);
  }

  #report(): void {
    const progress = this.#newest!;
    const now = performance.now();
    this.#timer = undefined;
    const [done, seconds] = [progress.done - this.#from, (now - this.#since) / 1000];
    // The first 0.2 seconds predict the rest badly.
    const known = done > 0 && seconds > 0.2;
    try {
      this.#listener(known ? { ...progress, etaSeconds: (seconds * (progress.total - progress.done)) / done } : progress);
    } finally {
      this.#last = performance.now();
    }
  }
}
