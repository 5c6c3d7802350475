/** The WebAssembly modules of a thread: which build of the engine runs, the tokenizer, and the GPU that they find. */
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
/** The engine alone: bindings of what the quantizer does are there too, and must not be called before it is loaded. */
export type Engine = Omit<WholeEngine, OfQuantizer>;
export type EngineCheckpoint = simd128.Checkpoint;
export type EngineModel = simd128.Model;
export type Tokenizer = text.Tokenizer;

/** An engine that is ready. */
interface Loaded {
  engine: WholeEngine;
  build: "simd128" | "relaxed-simd";
  /** What the module itself exports. */
  exports: simd128.InitOutput;
}

// The bindings hold one instance of each module, so these belong to the thread, however many engines run there.
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

  /** Takes modules that the caller brings. */
  use(given: GivenModules): void {
    this.#given = given;
  }

  /** The build of the engine that this thread runs. Whoever has a checkpoint has made it ready. */
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
   * The engine with its quantizer: what writes checkpoints and judges them. Most pages only speak, so it is a module of its
   * own, loaded when it is first needed. It joins the engine's memory and table: checkpoints and models are of both.
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

  /** A tokenizer of a checkpoint's files, for a model whose embedding has so many rows. */
  async tokenizer(name: string, files: Record<string, Uint8Array>, bosTokenId: number | undefined, rows: number): Promise<Tokenizer> {
    loadingText ??= this.#module("tokenizer").then((module) => text.default({ module_or_path: module }));
    try {
      await loadingText;
    } catch (error) {
      loadingText = undefined;
      throw unloadable("tokenizer", error);
    }
    return text.Tokenizer.open(name, files, bosTokenId, rows);
  }

  /** Makes a GPU be there where the device asks for one. */
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
   * The build with relaxed SIMD where the runtime has that and does it right: one does not (V8 11.3, of Node 20, drops the
   * accumulator of a dot product), so the kernels are checked before they are trusted.
   */
  async #load(): Promise<Loaded> {
    const mayRelax = this.#given["engine"] === undefined || this.#given["engine_relaxed"] !== undefined;
    if (mayRelax && (await relaxedSimd())) {
      try {
        const exports = await relaxed.default({ module_or_path: await this.#module("engine_relaxed") });
        relaxed.selfCheck();
        return { engine: relaxed, build: "relaxed-simd", exports };
      } catch {
        // The other build is right everywhere.
      }
    }
    const exports = await simd128.default({ module_or_path: await this.#module("engine") });
    simd128.selfCheck();
    return { engine: simd128, build: "simd128", exports };
  }

  async #module(name: ModuleName): Promise<ModuleInput> {
    const given = this.#given[name];
    if (given !== undefined) return given;
    // Who brings modules may have them nowhere else.
    if (Object.keys(this.#given).length > 0) {
      throw new LowbitError("invalid_argument", `this needs the module ${name}, which createEngine was not given`);
    }
    return this.#platform.module(name);
  }
}

/** Why a module is not there, and which. */
function unloadable(name: string, error: unknown): LowbitError {
  if (error instanceof LowbitError) return error;
  return new LowbitError("io", `the ${name} cannot be loaded: ${(error as Error).message}`, { cause: error });
}

/** Lets a module join another one, by its exports. It is complete when this resolves, and otherwise changed nothing. */
async function join(input: ModuleInput, exports: simd128.InitOutput): Promise<void> {
  const module = await compiled(input);
  try {
    await WebAssembly.instantiate(module, { first: { ...exports } });
  } catch (error) {
    // They know each other by a digest of both.
    if (!(error instanceof WebAssembly.LinkError)) throw error;
    throw new Error("it is of another build than the engine", { cause: error });
  }
}

async function compiled(input: ModuleInput): Promise<WebAssembly.Module> {
  if (typeof input === "string" || input instanceof URL) return compiled(await fetch(input));
  if (input instanceof ArrayBuffer || input instanceof Uint8Array) return WebAssembly.compile(input);
  if (!(input instanceof Response)) return input;
  if (!input.ok) throw new Error(`${input.url}: the server answered ${input.status}`);
  return WebAssembly.compile(await input.arrayBuffer());
}
