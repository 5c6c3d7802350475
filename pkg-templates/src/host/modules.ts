/**
 * The WebAssembly modules of a thread: the build of the engine, its quantizer, the tokenizer, and access to the GPU.
 */
import { relaxedSimd } from "wasm-feature-detect";
import { LowbitError } from "../errors.js";
import type { HostPlatform, ModuleInput, ModuleName } from "../platform.js";
import type { DeviceChoice } from "../options.generated.js";
import * as simd128 from "../wasm/engine.js";
import * as relaxed from "../wasm/engine_relaxed.js";
import type { OfQuantizer } from "../wasm/quantizer.js";
import * as text from "../wasm/tokenizer.js";
import type { GivenModules } from "../wire.js";

/** The engine with its quantizer. Both builds have the same bindings. */
export type WholeEngine = typeof simd128;
/**
 * The engine without the quantizer. The type omits the quantizer's bindings, which must not be called before it is
 * loaded.
 */
export type Engine = Omit<WholeEngine, OfQuantizer>;
export type EngineCheckpoint = simd128.Checkpoint;
export type EngineModel = simd128.Model;
export type Tokenizer = text.Tokenizer;

/** A loaded engine. */
interface Loaded {
  engine: WholeEngine;
  build: "simd128" | "relaxed-simd";
  /** The module's own exports. */
  exports: simd128.InitOutput;
}

// The bindings hold one instance of each module per thread, so all engines of a thread share these.
let loading: Promise<Loaded> | undefined;
let loaded: Loaded | undefined;
let loadingQuantizer: Promise<unknown> | undefined;
let loadingText: Promise<unknown> | undefined;

export class Modules {
  readonly #platform: HostPlatform;
  #given: GivenModules = {};
  #gpu: Promise<void> | undefined;

  constructor(platform: HostPlatform) {
    this.#platform = platform;
  }

  /** Uses modules that the caller provides. */
  use(given: GivenModules): void {
    this.#given = given;
  }

  /** The loaded engine. An open checkpoint implies that it is loaded. */
  get engine(): Engine {
    if (loaded === undefined) throw new LowbitError("internal", "the engine is not loaded");
    return loaded.engine;
  }

  /** Loads the engine, once. */
  async ready(): Promise<{ engine: Engine; build: Loaded["build"]; memory: WebAssembly.Memory }> {
    const { engine, build, exports } = await this.#ready();
    return { engine, build, memory: exports.memory };
  }

  /**
   * The engine with its quantizer, which writes, validates and compares checkpoints. Most pages only generate text, so
   * the quantizer is a separate module, loaded on first use. Both share memory and table, so checkpoints and models
   * work in both.
   */
  async withQuantizer(): Promise<WholeEngine> {
    const { engine, build, exports } = await this.#ready();
    loadingQuantizer ??= this.#module(build === "simd128" ? "quantizer" : "quantizer_relaxed").then((module) => join(module, exports));
    try {
      await loadingQuantizer;
    } catch (error) {
      loadingQuantizer = undefined;
      throw unloadable("quantizer", error);
    }
    return engine;
  }

  async #ready(): Promise<Loaded> {
    loading ??= this.#load();
    try {
      return (loaded = await loading);
    } catch (error) {
      loading = undefined;
      throw unloadable("engine", error);
    }
  }

  /** Opens a tokenizer from a checkpoint's files. `rows` is the number of rows of the model's embedding. */
  async tokenizer(name: string, files: Record<string, Uint8Array>, bosTokenId: number | undefined, rows: number, allowUnknown: string[]): Promise<Tokenizer> {
    loadingText ??= this.#module("tokenizer").then((module) => text.default({ module_or_path: module }));
    try {
      await loadingText;
    } catch (error) {
      loadingText = undefined;
      throw unloadable("tokenizer", error);
    }
    return text.Tokenizer.open(name, files, bosTokenId, rows, allowUnknown);
  }

  /** Prepares the GPU unless the device is `cpu`. Fails only if the device is `gpu`. */
  async forDevice({ device }: { device?: DeviceChoice }): Promise<void> {
    if (device === "cpu") return;
    try {
      await this.prepareGpu();
    } catch (error) {
      if (device === "gpu") throw error;
    }
  }

  prepareGpu(): Promise<void> {
    if (this.#gpu === undefined) {
      this.#gpu = this.#platform.prepareGpu();
      this.#gpu.catch(() => (this.#gpu = undefined));
    }
    return this.#gpu;
  }

  /**
   * Loads the build with relaxed SIMD if the runtime supports it and its kernels pass the self-check, else the simd128
   * build. The check is needed: V8 11.3 in Node 20 drops the accumulator of a dot product.
   */
  async #load(): Promise<Loaded> {
    const mayRelax = this.#given["engine"] === undefined || this.#given["engine_relaxed"] !== undefined;
    if (mayRelax && (await relaxedSimd())) {
      try {
        const exports = await relaxed.default({ module_or_path: await this.#module("engine_relaxed") });
        relaxed.selfCheck();
        return { engine: relaxed, build: "relaxed-simd", exports };
      } catch {
        // Fall back to the simd128 build.
      }
    }
    const exports = await simd128.default({ module_or_path: await this.#module("engine") });
    simd128.selfCheck();
    return { engine: simd128, build: "simd128", exports };
  }

  async #module(name: ModuleName): Promise<ModuleInput> {
    const given = this.#given[name];
    if (given !== undefined) return given;
    // With provided modules, the platform may not have the others.
    if (Object.keys(this.#given).length > 0) {
      throw new LowbitError("invalid_argument", `this needs the module ${name}, which createEngine was not given`);
    }
    return this.#platform.module(name);
  }
}

/** The error of a module that cannot be loaded. */
function unloadable(name: string, error: unknown): LowbitError {
  if (error instanceof LowbitError) return error;
  return new LowbitError("io", `the ${name} cannot be loaded: ${(error as Error).message}`, { cause: error });
}

/** Instantiates the quantizer on the engine's exports. Changes nothing if it fails. */
async function join(input: ModuleInput, exports: simd128.InitOutput): Promise<void> {
  const module = await compiled(input);
  try {
    await WebAssembly.instantiate(module, { first: { ...exports } });
  } catch (error) {
    // The quantizer imports a memory that is named by a digest of both, so it links only to its own build.
    if (!(error instanceof WebAssembly.LinkError)) throw error;
    throw new Error("it is from another build than the engine", { cause: error });
  }
}

async function compiled(input: ModuleInput): Promise<WebAssembly.Module> {
  if (typeof input === "string" || input instanceof URL) return compiled(await fetch(input));
  if (input instanceof ArrayBuffer || input instanceof Uint8Array) return WebAssembly.compile(input);
  if (!(input instanceof Response)) return input;
  if (!input.ok) throw new Error(`${input.url}: the server answered ${input.status}`);
  return WebAssembly.compile(await input.arrayBuffer());
}
