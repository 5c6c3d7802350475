/** The package without any loading of its own: for programs that bring the worker and the modules themselves. */
import type { PlatformModule, PlatformUrl } from "./ambient.js";
import { Engine } from "./client/engine.js";
import { expect, onlyKnown, optionsOf } from "./requests.js";
import type { ModuleName } from "./platform.js";
import { isPath } from "./specs.js";
import type { GivenModules } from "./wire.js";
import { nodeThread, webThread, type NodeWorker, type WebWorker } from "./workers.js";

export * from "./exports.js";

/** A module: compiled, as bytes, or its URL. Responses cannot go to a worker. */
export type GivenModule = PlatformModule | ArrayBuffer | Uint8Array | PlatformUrl;

/** What a program brings. */
export interface SlimOptions {
  /** A worker that runs `lowbit/worker`, of a page or of Node, for this engine alone: it ends with the engine. */
  worker: WebWorker | NodeWorker;
  /**
   * `engine_relaxed` is taken where the runtime has relaxed SIMD and does it right. `quantizer` and `quantizer_relaxed` belong to the
   * engine of the same build: they write checkpoints and judge them, and a program that only speaks brings none.
   */
  modules: {
    engine: GivenModule;
    engine_relaxed?: GivenModule;
    quantizer?: GivenModule;
    quantizer_relaxed?: GivenModule;
    tokenizer: GivenModule;
  };
}

const NEEDED = ["engine", "tokenizer"] as const;
const OPTIONAL = ["engine_relaxed", "quantizer", "quantizer_relaxed"] as const;

/** An engine on a worker that is there already. */
export function createEngine(options: SlimOptions): Engine {
  const given = optionsOf("createEngine", options);
  onlyKnown("createEngine", given, ["worker", "modules"]);
  const { worker, modules } = given;
  expect(typeof worker?.postMessage === "function", "createEngine", "`worker` to be a Worker", worker);
  expect(typeof modules === "object" && modules !== null, "createEngine", "`modules` to be an object", modules);
  onlyKnown("createEngine: modules", modules, [...NEEDED, ...OPTIONAL]);
  const relaxed = modules.engine_relaxed !== undefined && modules.quantizer !== undefined;
  expect(!relaxed || modules.quantizer_relaxed !== undefined, "createEngine", "a `quantizer_relaxed` for the `engine_relaxed`", undefined);
  const onNode = !("addEventListener" in worker);
  const startWorker = () => ("addEventListener" in worker ? webThread(worker) : nodeThread(worker));
  const names = [...NEEDED, ...OPTIONAL.filter((name) => modules[name] !== undefined)];
  const sent: GivenModules = Object.fromEntries(names.map((name) => [name, sendable(name, modules[name])]));
  const platform = { isPath: (text: string) => onNode && isPath(text), startWorker, startHere: async () => startWorker() };
  return new Engine(platform, { modules: sent });
}

function sendable(name: ModuleName, module: GivenModule | undefined): WebAssembly.Module | ArrayBuffer | Uint8Array | string {
  if (module instanceof URL) return module.href;
  const known = module instanceof WebAssembly.Module || module instanceof ArrayBuffer || ArrayBuffer.isView(module);
  expect(known, "createEngine", `the module ${name}, compiled, as bytes or as a URL,`, module);
  return module;
}
