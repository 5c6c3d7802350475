/** The caller's side in Node, Deno and Bun. */
import { Worker } from "node:worker_threads";
import type { ClientPlatform, Thread } from "./platform.js";
import { pair } from "./wire.js";

function startWorker(): Thread {
  const worker = new Worker(new URL("./worker.node.js", import.meta.url), {
    name: "lowbit",
    // Those of the program may not be for files: `--input-type` is not.
    execArgv: [],
  });
  // Nothing is asked for yet, so nothing is waited for.
  worker.unref();
  let ended = false;
  return {
    port: {
      post: (message) => worker.postMessage(message),
      listen: (listener) => {
        worker.on("message", listener);
        // Listening holds the program; `hold` alone decides that.
        worker.unref();
      },
    },
    hold: (alive) => (alive ? worker.ref() : worker.unref()),
    onFailure: (listener) => {
      worker.on("error", listener);
      worker.on("messageerror", listener);
      worker.on("exit", (code) => {
        if (!ended) listener({ message: `its worker ended with code ${code}` });
      });
    },
    terminate: () => {
      ended = true;
      void worker.terminate();
    },
  };
}

export const platform: ClientPlatform = {
  isPath: (text) => /^(\/|\.\.?(\/|\\|$)|~(\/|$)|[A-Za-z]:[\\/])/.test(text),
  startWorker,
  startHere: async () => {
    const [here, there] = pair();
    const { start } = await import("./host.node.js");
    start(there);
    return { port: here, hold: () => {}, onFailure: () => {}, terminate: () => {} };
  },
};
