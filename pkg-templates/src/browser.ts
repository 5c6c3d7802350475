/** The caller side's platform in browsers. */
import type { ClientPlatform } from "./platform.js";
import { pair } from "./wire.js";
import { webThread } from "./workers.js";

function newWorker(): Worker {
  try {
    // Bundlers find the worker only by this literal form.
    return new Worker(new URL("./worker.browser.js", import.meta.url), { type: "module", name: "lowbit" });
  } catch (error) {
    // A page may import the package from another origin, and workers must start from the page's own.
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
