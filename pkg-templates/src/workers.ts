/** Workers that run the engine, as threads of the caller's side. Not here: how they are started. */
import type { Thread } from "./platform.js";

/** What is used of a worker of the web. Named here, for programs without the types of browsers. */
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

/** What is used of a worker of `node:worker_threads`. */
export interface NodeWorker {
  postMessage(message: unknown): void;
  on(type: string, listener: (value: unknown) => void): unknown;
  ref(): void;
  unref(): void;
  terminate(): Promise<number>;
}

/**
 * How messages travel. In `node:worker_threads` Deno looks at every element of an array of bytes, as if it were a property that
 * may hold a port: 0.4 s for 4 MB, each way. It does not look into maps, and then takes 10 ms.
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
    // A page is not kept alive by its workers.
    hold: () => {},
    onFailure: (listener) => {
      worker.addEventListener("error", ({ error, message }) => listener(error ?? { message }));
      worker.addEventListener("messageerror", () => listener({ message: "a message could not be read" }));
    },
    terminate: async () => worker.terminate(),
  };
}

export function nodeThread(worker: NodeWorker): Thread {
  // Nothing is asked for yet, so nothing is waited for.
  worker.unref();
  let ended = false;
  return {
    port: {
      post: (message) => worker.postMessage(envelope.seal(message)),
      listen: (listener) => {
        worker.on("message", (sealed) => listener(envelope.open(sealed)));
        // Listening holds the program; `hold` alone decides that.
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
