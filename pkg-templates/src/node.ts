/** The caller side's platform in Node, Deno and Bun. */
import { Worker } from "node:worker_threads";
import type { ClientPlatform } from "./platform.js";
import { isPath } from "./specs.js";
import { pair } from "./wire.js";
import { nodeThread } from "./workers.js";

function newWorker(): Worker {
  return new Worker(new URL("./worker.node.js", import.meta.url), {
    name: "lowbit",
    // Not the program's: some, such as `--input-type`, are invalid for a file.
    execArgv: [],
  });
}

export const platform: ClientPlatform = {
  isPath,
  startWorker: () => nodeThread(newWorker()),
  startHere: async () => {
    const [here, there] = pair();
    const { start } = await import("./host.node.js");
    start(there);
    return { port: here, hold: () => {}, onFailure: () => {}, terminate: async () => {} };
  },
};
