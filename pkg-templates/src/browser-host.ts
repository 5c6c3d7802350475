/** The engine's side in browsers. */
import { LowbitError } from "./errors.js";
import type { HostPlatform } from "./platform.js";
import { memoryScratch } from "./scratch.js";

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

export const platform: HostPlatform = {
  // Written out one by one: bundlers find files by this very spelling.
  module: async (name) => {
    switch (name) {
      case "engine":
        return new URL("./engine_bg.wasm", import.meta.url);
      case "engine_relaxed":
        return new URL("./engine_relaxed_bg.wasm", import.meta.url);
      case "tokenizer":
        return new URL("./tokenizer_bg.wasm", import.meta.url);
    }
  },
  scratch: async () => memoryScratch(),
  prepareGpu: async () => {
    if ((navigator as { gpu?: unknown }).gpu === undefined) {
      throw new LowbitError("no_device", "this browser has no WebGPU here");
    }
  },
  turn: turns(),
};
