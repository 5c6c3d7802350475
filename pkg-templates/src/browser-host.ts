/** The engine's side in browsers. */
import { LowbitError } from "./errors.js";
import type { HostPlatform, Store } from "./platform.js";
import { memoryScratch, opfsScratch } from "./scratch.js";
import { opfsDirectory } from "./targets.js";

/** A channel to oneself: its messages come in later turns, after timers and events, and sooner than a timer of its own. */
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

/** The browser's cache storage, which holds answers by their URLs. Absent in pages that are not secure. */
async function store(): Promise<Store | undefined> {
  if (typeof caches === "undefined") return undefined;
  const cache = await caches.open("lowbit").catch(() => undefined);
  if (cache === undefined) return undefined;
  // A name that no server has.
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
  // Written out one by one: bundlers find files by this very spelling.
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
    throw new LowbitError("invalid_argument", `${place.path}: there are no paths here; give {opfs: "folder"}`);
  },
  store,
  prepareGpu: async () => {
    if ((navigator as { gpu?: unknown }).gpu === undefined) {
      throw new LowbitError("no_device", "this browser has no WebGPU here");
    }
  },
  turn: turns(),
};
