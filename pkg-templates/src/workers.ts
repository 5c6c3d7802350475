/** Adapts web and Node workers to `Thread`. Not here: how they are started. */
import type { Thread } from "./platform.js";

/** The used part of a web `Worker`. Declared here for programs without the DOM's types. */
export interface WebWorker {
  postMessage(message: unknown): void;
  addEventListener(type: string, listener: (event: WorkerEvent) => void): void;
  terminate(): void;
}

interface WorkerEvent {
  readonly type: string;
  readonly data?: unknown;
  readonly error?: unknown;
  readonly message?: string;
}

/** The used part of a `Worker` of `node:worker_threads`. */
export interface NodeWorker {
  postMessage(message: unknown): void;
  on(type: string, listener: (value: unknown) => void): unknown;
  ref(): void;
  unref(): void;
  terminate(): Promise<number>;
}

/**
 * Wraps messages in a `Map`, because Deno's `node:worker_threads` searches every element of a byte array for ports but
 * does not look into maps. For 4 MB that takes 0.4 s each way, in a map 10 ms.
 */
export const envelope = {
  seal: (message: unknown): unknown => new Map([["message", message]]),
  open: (sealed: unknown): unknown => (sealed as Map<string, unknown>).get("message"),
};

export function webThread(worker: WebWorker): Thread {
  return {
    port: {
      post: (message) => worker.postMessage(envelope.seal(message)),
      listen: (listener) => worker.addEventListener("message", ({ data }) => listener(envelope.open(data))),
    },
    // Workers do not keep a page alive.
    hold: () => {},
    onFailure: (listener) => {
      worker.addEventListener("error", ({ error, message }) => listener(error ?? { message }));
      worker.addEventListener("messageerror", () => listener({ message: "a message could not be read" }));
    },
    terminate: async () => worker.terminate(),
  };
}

export function nodeThread(worker: NodeWorker): Thread {
  // There are no pending calls yet.
  worker.unref();
  let ended = false;
  return {
    port: {
      post: (message) => worker.postMessage(envelope.seal(message)),
      listen: (listener) => {
        worker.on("message", (sealed) => listener(envelope.open(sealed)));
        // A listener keeps the program alive, but only `hold` should.
        worker.unref();
      },
    },
    hold: (alive) => (alive ? worker.ref() : worker.unref()),
    onFailure: (listener) => {
      worker.on("error", listener);
      worker.on("messageerror", listener);
      worker.on("exit", (code) => {
        if (!ended) listener({ message: `its worker ended with code ${String(code)}` });
      });
    },
    terminate: async () => {
      ended = true;
      await worker.terminate();
    },
  };
}
