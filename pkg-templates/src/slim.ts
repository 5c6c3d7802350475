/** The package without any loading of its own: for pages that bring the worker and the modules themselves. */
import { Engine } from "./client/engine.js";
import type { Thread } from "./platform.js";

export * from "./exports.js";

/** What a page brings. */
export interface SlimOptions {
  /** A worker that runs `lowbit/worker`. */
  worker: Worker;
  /** The modules: compiled, as bytes, or their URLs. Responses cannot go to a worker. */
  modules: { engine: WebAssembly.Module | ArrayBuffer | Uint8Array | URL; tokenizer: WebAssembly.Module | ArrayBuffer | Uint8Array | URL };
}

/** An engine on a worker that is there already. */
export function createEngine({ worker, modules }: SlimOptions): Engine {
  const startWorker = (): Thread => ({
    port: {
      post: (message) => worker.postMessage(message),
      listen: (listener) => worker.addEventListener("message", (event) => listener(event.data)),
    },
    hold: () => {},
    onFailure: (listener) => worker.addEventListener("error", (event) => listener(event.error ?? { message: event.message })),
    terminate: () => worker.terminate(),
  });
  const sent = Object.entries(modules).map(([name, module]) => [name, module instanceof URL ? module.href : module]);
  return new Engine(
    { isPath: () => false, startWorker, startHere: async () => startWorker() },
    { modules: Object.fromEntries(sent) },
  );
}
