/** The WebAssembly modules of a thread: which build of the engine runs, the tokenizer, and the GPU that they find. */
import { relaxedSimd } from "wasm-feature-detect";
import { LowbitError } from "../errors.js";
import type { HostPlatform, ModuleInput } from "../platform.js";
import type { DeviceChoice } from "../options.generated.js";
import * as simd128 from "../wasm/engine.js";
import * as relaxed from "../wasm/engine_relaxed.js";
import * as text from "../wasm/tokenizer.js";
import type { GivenModules } from "../wire.js";

/** Both builds of the engine have the same bindings. */
export type EngineModule = typeof simd128;
export type EngineCheckpoint = simd128.Checkpoint;
export type EngineModel = simd128.Model;
export type Tokenizer = text.Tokenizer;

/** An engine that is ready. */
interface Loaded {
  engine: EngineModule;
  build: "simd128" | "relaxed-simd";
  memory: WebAssembly.Memory;
}

// The bindings hold one instance of each module, so these belong to the thread, however many engines run there.
let loading: Promise<Loaded> | undefined;
let loaded: Loaded | undefined;
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
  get engine(): EngineModule {
    if (loaded === undefined) throw new LowbitError("internal", "the engine is not loaded");
    return loaded.engine;
  }

  /** Loads the engine, once. */
  async ready(): Promise<Loaded> {
    loading ??= this.#load();
    try {
      return (loaded = await loading);
    } catch (error) {
      loading = undefined;
      throw new LowbitError("io", `the engine cannot be loaded: ${(error as Error).message}`, { cause: error });
    }
  }

  /** A tokenizer of a checkpoint's files, for a model whose embedding has so many rows. */
  async tokenizer(name: string, files: Record<string, Uint8Array>, bosTokenId: number | undefined, rows: number): Promise<Tokenizer> {
    loadingText ??= this.#module("tokenizer").then((module) => text.default({ module_or_path: module }));
    try {
      await loadingText;
    } catch (error) {
      loadingText = undefined;
      throw new LowbitError("io", `the tokenizer cannot be loaded: ${(error as Error).message}`, { cause: error });
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
        const { memory } = await relaxed.default({ module_or_path: await this.#module("engine_relaxed") });
        relaxed.selfCheck();
        return { engine: relaxed, build: "relaxed-simd", memory };
      } catch {
        // The other build is right everywhere.
      }
    }
    const { memory } = await simd128.default({ module_or_path: await this.#module("engine") });
    simd128.selfCheck();
    return { engine: simd128, build: "simd128", memory };
  }

  async #module(name: "engine" | "engine_relaxed" | "tokenizer"): Promise<ModuleInput> {
    return this.#given[name] ?? this.#platform.module(name);
  }
}
