/** The engine side's platform in browsers. */
import { LowbitError } from "./errors.js";
import type { HostPlatform, Store } from "./platform.js";
import { memoryScratch, opfsScratch } from "./scratch.js";
import { opfsDirectory } from "./targets.js";

/**
 * Yields to the event loop by a message to itself. Due timers and events run first, and the delay is shorter than a
 * timer's.
 */
function turns(): () => Promise<void> {
  const { port1, port2 } = new MessageChannel();
  const waiting: (() => void)[] = [];
  port1.onmessage = () => waiting.shift()?.();
  return () =>
    new Promise((resolve) => {
      waiting.push(resolve);
      port2.postMessage(undefined);
    });
}

/** A store in the browser's Cache Storage, keyed by URL. `undefined` in an insecure context. */
async function store(): Promise<Store | undefined> {
  if (typeof caches === "undefined") return undefined;
  const cache = await caches.open("lowbit").catch(() => undefined);
  if (cache === undefined) return undefined;
  // `.invalid` is a reserved domain: no server has this name.
  const base = "https://lowbit.invalid/";
  const url = (key: string) => base + encodeURIComponent(key);
  return {
    get: async (key) => {
      const found = await cache.match(url(key));
      return found && new Uint8Array(await found.arrayBuffer());
    },
    put: (key, bytes) => cache.put(url(key), new Response(bytes as Uint8Array<ArrayBuffer>)),
    keys: async () => (await cache.keys()).map((request) => decodeURIComponent(request.url.slice(base.length))),
    delete: async (key) => void (await cache.delete(url(key))),
  };
}

export const platform: HostPlatform = {
  // Bundlers find the files only by this literal form.
  module: async (name) => {
    switch (name) {
      case "engine":
        return new URL("./engine_bg.wasm", import.meta.url);
      case "engine_relaxed":
        return new URL("./engine_relaxed_bg.wasm", import.meta.url);
      case "quantizer":
        return new URL("./quantizer_bg.wasm", import.meta.url);
      case "quantizer_relaxed":
        return new URL("./quantizer_relaxed_bg.wasm", import.meta.url);
      case "tokenizer":
        return new URL("./tokenizer_bg.wasm", import.meta.url);
    }
  },
  scratch: async () => memoryScratch(),
  keptScratch: async (place) => {
    if ("opfs" in place) return opfsScratch(await opfsDirectory(place.opfs));
    throw new LowbitError("invalid_argument", `${place.path}: paths are not available here; give {opfs: "folder"}`);
  },
  store,
  prepareGpu: async () => {
    if ((navigator as { gpu?: unknown }).gpu === undefined) {
      throw new LowbitError("no_device", "WebGPU is not available; pages have it only over https and on localhost");
    }
  },
  turn: turns(),
};
