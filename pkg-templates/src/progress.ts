/** Reports of how far work is, on their way to the caller. */
import type { Progress } from "./types.js";

type Reported = Omit<Progress, "etaSeconds">;

/** Reports come no closer together than this. */
const APART_MS = 50;

/**
 * Passes on the newest report, each in a timer's turn of its own: messages of a worker come several at a time where the
 * caller's thread was busy, and between any two reports a page is to have had its own turn.
 */
export class Reporter {
  readonly #listener: (progress: Progress) => void;
  #newest: Reported | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #last = Number.NEGATIVE_INFINITY;
  #ended = false;
  /** The phase at hand, when it began, and how far it was then. */
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

  /** Nothing is reported after the work's end. */
  end(): void {
    this.#ended = true;
    clearTimeout(this.#timer);
  }

  #report(): void {
    const progress = this.#newest!;
    const now = performance.now();
    this.#timer = undefined;
    const [done, seconds] = [progress.done - this.#from, (now - this.#since) / 1000];
    // The first moments say little about the rest.
    const known = done > 0 && seconds > 0.2;
    try {
      this.#listener(known ? { ...progress, etaSeconds: (seconds * (progress.total - progress.done)) / done } : progress);
    } finally {
      this.#last = performance.now();
    }
  }
}
