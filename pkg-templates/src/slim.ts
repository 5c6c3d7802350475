/** Entry point for programs that provide the worker and the modules. It loads nothing by itself. */
import type { PlatformModule, PlatformUrl } from "./ambient.js";
import { Engine } from "./client/engine.js";
import { expect, onlyKnown, optionsOf } from "./requests.js";
import type { ModuleName } from "./platform.js";
import { isPath } from "./specs.js";
import type { GivenModules } from "./wire.js";
import { nodeThread, webThread, type NodeWorker, type WebWorker } from "./workers.js";

export * from "./exports.js";

/** A module: compiled, as bytes, or its URL. Not a `Response`, which cannot be sent to a worker. */
export type GivenModule = PlatformModule | ArrayBuffer | Uint8Array | PlatformUrl;

/** The worker and the modules. */
export interface SlimOptions {
  /** A Web Worker or a Node worker that runs `lowbit/worker`. It belongs to this engine, and ends with it. */
  worker: WebWorker | NodeWorker;
  /**
   * `engine_relaxed` is used if the runtime supports relaxed SIMD and passes the engine's self-check. `quantizer` and
   * `quantizer_relaxed` belong to the engine of the same build. They write, validate and compare checkpoints; a program
   * that only generates text needs neither.
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

/** Creates an engine in an existing worker. Throws `invalid_argument` for wrong options. */
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
