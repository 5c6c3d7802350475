/** The WebAssembly modules of a thread: which build of the engine runs, the tokenizer, and the GPU that they find. */
import { relaxedSimd } from "wasm-feature-detect";
import { LowbitError } from "../errors.js";
import type { HostPlatform } from "../platform.js";
import type { Device } from "../types.js";
import * as simd128 from "../wasm/engine.js";
import * as relaxed from "../wasm/engine_relaxed.js";
import * as text from "../wasm/tokenizer.js";
import type { GivenModules } from "../wire.js";

/** Both builds of the engine have the same bindings. */
export type EngineModule = typeof simd128;
export type EngineCheckpoint = simd128.Checkpoint;
export type EngineModel = simd128.Model;
export type Tokenizer = text.Tokenizer;

export class Modules {
  readonly #platform: HostPlatform;
  #given: GivenModules = {};
  #loading: Promise<simd128.InitOutput> | undefined;
  #engine: EngineModule = simd128;
  #build = "simd128";
  #text: Promise<text.InitOutput> | undefined;
  #gpu: Promise<void> | undefined;

  constructor(platform: HostPlatform) {
    this.#platform = platform;
  }

  /** Takes modules that the caller brings. */
  use(given: GivenModules): void {
    this.#given = given;
  }

  /** The build of the engine that this thread runs, once `ready` has chosen it. */
  get engine(): EngineModule {
    return this.#engine;
  }

  /** Its name. */
  get build(): string {
    return this.#build;
  }

  /** Loads the engine, once. Gives its memory. */
  async ready(): Promise<WebAssembly.Memory> {
    this.#loading ??= this.#load();
    try {
      return (await this.#loading).memory;
    } catch (error) {
      this.#loading = undefined;
      throw new LowbitError("io", `the engine cannot be loaded: ${(error as Error).message}`, { cause: error });
    }
  }

  /** A tokenizer of a checkpoint's files. */
  async tokenizer(name: string, files: Record<string, Uint8Array>, bosTokenId: number | undefined): Promise<Tokenizer> {
    this.#text ??= this.#module("tokenizer").then((module) => text.default({ module_or_path: module as never }));
    await this.#text;
    return text.Tokenizer.open(name, files, bosTokenId);
  }

  /** Makes a GPU be there where the device asks for one. */
  async forDevice({ device }: { device?: Device }): Promise<void> {
    if (device === "cpu") return;
    try {
      await this.prepareGpu();
    } catch (error) {
      if (device === "gpu") throw error;
    }
  }

  prepareGpu(): Promise<void> {
    this.#gpu ??= this.#platform.prepareGpu();
    return this.#gpu;
  }

  /**
   * The build with relaxed SIMD where the runtime has that and does it right: one does not (V8 11.3, of Node 20, drops the
   * accumulator of a dot product), so the kernels are checked before they are trusted.
   */
  async #load(): Promise<simd128.InitOutput> {
    const mayRelax = this.#given["engine"] === undefined || this.#given["engine_relaxed"] !== undefined;
    if (mayRelax && (await relaxedSimd())) {
      try {
        const loaded = await relaxed.default({ module_or_path: (await this.#module("engine_relaxed")) as never });
        relaxed.selfCheck();
        this.#engine = relaxed as unknown as EngineModule;
        this.#build = "relaxed-simd";
        return loaded;
      } catch {
        // The other build is right everywhere.
      }
    }
    const loaded = await simd128.default({ module_or_path: (await this.#module("engine")) as never });
    simd128.selfCheck();
    return loaded;
  }

  async #module(name: "engine" | "engine_relaxed" | "tokenizer"): Promise<unknown> {
    return this.#given[name] ?? this.#platform.module(name);
  }
}
