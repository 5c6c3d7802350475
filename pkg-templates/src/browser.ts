/** The caller's side in browsers. */
import type { ClientPlatform } from "./platform.js";
import { pair } from "./wire.js";
import { webThread } from "./workers.js";

function newWorker(): Worker {
  try {
    // Written out: bundlers find the worker by this very spelling.
    return new Worker(new URL("./worker.browser.js", import.meta.url), { type: "module", name: "lowbit" });
  } catch (error) {
    // A page may import the package from another origin, where a worker may not start from.
    if ((error as { name?: string }).name !== "SecurityError") throw error;
    const url = new URL("./worker.browser.js", import.meta.url).href;
    const text = new Blob([`import ${JSON.stringify(url)};`], { type: "text/javascript" });
    return new Worker(URL.createObjectURL(text), { type: "module", name: "lowbit" });
  }
}

export const platform: ClientPlatform = {
  isPath: () => false,
  startWorker: () => webThread(newWorker()),
  startHere: async () => {
    const [here, there] = pair();
    const { start } = await import("./host.browser.js");
    start(there);
    return { port: here, hold: () => {}, onFailure: () => {}, terminate: async () => {} };
  },
};
