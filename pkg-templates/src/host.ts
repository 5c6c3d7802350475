/**
 * The engine's side: holds the WebAssembly modules, checkpoints and models, and does what the caller's side asks for.
 *
 * Runs in a worker, or in the caller's own thread; what differs between places is in the platform. Not here: what the caller
 * sees (`client.ts`).
 */
import { relaxedSimd } from "wasm-feature-detect";
import * as simd128 from "./wasm/engine.js";
import * as relaxed from "./wasm/engine_relaxed.js";
import * as text from "./wasm/tokenizer.js";
import * as cache from "./cache.js";
import { asLowbitError, LowbitError } from "./errors.js";
import {
  directoryFolder, fetchWith, filesFolder, MemoryFolder, openUrlFile, specFile, urlFolder, type Fetch,
} from "./folders.js";
import type { Folder, HostPlatform, OpenFile, Store, TargetFolder } from "./platform.js";
import { callerTarget, directoryTarget, EMPTY, opfsDirectory } from "./targets.js";
import { connect, type CheckpointRef, type ClientFunctions, type GivenModules, type HostFunctions, type Searched, type SourceSpec, type TargetSpec, type Written } from "./wire.js";
import type { Port } from "./platform.js";
import type { AttemptSummary, AutoEvent, ChatMessage, CheckpointInfo, Device, GenerateResult, ModelInfo, QuantizationRecord } from "./types.js";

/** Both builds of the engine have the same bindings. */
type EngineModule = typeof simd128;

/** The build that this thread runs. A type of its own beside it, because a variable is no namespace. */
let engine: EngineModule = simd128;
let build = "simd128";

type EngineCheckpoint = simd128.Checkpoint;
type EngineModel = simd128.Model;

/** A checkpoint, and its tokenizer once it was needed. */
interface HeldCheckpoint {
  handle: EngineCheckpoint;
  tokenizer?: Promise<text.Tokenizer>;
  /** Where the tokenizer comes from, where that is another folder. */
  tokenizerFolder?: Folder;
  meter: Meter;
}

interface HeldModel {
  handle: EngineModel;
  checkpoint: HeldCheckpoint;
  /** The end of the work that was asked for last: a model does one thing at a time. */
  queue: Promise<unknown>;
}

/** What is counted of a checkpoint's files. */
interface Meter {
  /** Bytes read so far. */
  bytes: number;
  /** The work that opens the checkpoint, while it does: nothing else looks there whether it goes on. */
  opening?: Job;
}

/** Work under way. */
interface Job {
  aborted: boolean;
}

/** A place that is written, and the same place to read from. */
interface Place {
  target: TargetFolder;
  existing: Folder;
  readable: boolean;
  memory?: MemoryFolder;
  /** A folder of that name inside it. */
  inside(name: string): Promise<Place>;
}

/** Serves one connection. Gives what it takes to end. */
export function serve(port: Port, platform: HostPlatform): void {
  const host = new Host(platform);
  const caller: ClientFunctions = connect<ClientFunctions, HostFunctions>(port, host.functions(() => caller));
}

class Host {
  readonly #platform: HostPlatform;
  readonly #checkpoints = new Map<number, HeldCheckpoint>();
  readonly #models = new Map<number, HeldModel>();
  readonly #folders = new Map<number, MemoryFolder>();
  readonly #jobs = new Map<number, Job>();
  #nextId = 1;
  #given: GivenModules = {};
  #engine: Promise<simd128.InitOutput> | undefined;
  #text: Promise<text.InitOutput> | undefined;
  #gpu: Promise<void> | undefined;
  /** Why the engine is of no use any more. */
  #broken: LowbitError | undefined;

  constructor(platform: HostPlatform) {
    this.#platform = platform;
  }

  /** The functions that the caller's side reaches, each with failures as `LowbitError`s. */
  functions(caller: () => ClientFunctions): HostFunctions {
    const functions: HostFunctions = {
      use: async (modules) => {
        this.#given = modules;
      },
      open: (job, source, tokenizer, options) =>
        this.#job(job, async (state) => {
          await this.#ready();
          const meter: Meter = { bytes: 0, opening: state };
          const tokenizerFolder = tokenizer && (await this.#folder(tokenizer, caller(), meter));
          const handle = await this.#openSource(source, options, caller(), meter);
          stopIfAborted(state);
          delete meter.opening;
          return this.#keep(handle, meter, tokenizerFolder && folderOf(tokenizerFolder));
        }),
      plan: async (id, options) => this.#checkpoint(id).handle.plan(options),
      planParameters: async (parameters, options) => {
        await this.#ready();
        return engine.planParameters(parameters, options);
      },
      quantize: (job, id, request, target) =>
        this.#job(job, async (state) => {
          const source = this.#checkpoint(id);
          const wanted = request as { calibration?: { texts?: unknown[] } };
          const codec = wanted.calibration?.texts?.length ? await this.#tokenizer(source) : undefined;
          const place = await this.#place(target, caller());
          const scratch = await this.#platform.scratch();
          try {
            const control = this.#control(job, state, source.meter, caller());
            const summary = await engine.quantize(
              source.handle, request, codec as never, place.target as never, place.existing as never, scratch as never,
              control as never,
            );
            return await this.#written(summary, place);
          } finally {
            await scratch.dispose();
          }
        }),
      dequantize: (job, id, dtype, target) =>
        this.#job(job, async (state) => {
          const source = this.#checkpoint(id);
          const place = await this.#place(target, caller());
          const control = this.#control(job, state, source.meter, caller());
          const summary = await engine.dequantize(
            source.handle, dtype, place.target as never, place.existing as never, control as never,
          );
          return this.#written(summary, place);
        }),
      convert: (job, id, request, target) =>
        this.#job(job, async (state) => {
          const source = this.#checkpoint(id);
          const place = await this.#place(target, caller());
          const control = this.#control(job, state, source.meter, caller());
          const summary = await engine.convert(
            source.handle, request, place.target as never, place.existing as never, control as never,
          );
          const { format, file } = request as { format?: string; file?: string };
          return this.#written(summary, place, format === "gguf" ? (file ?? "model.gguf") : undefined);
        }),
      files: async (folder) => {
        const held = this.#folders.get(folder);
        if (held === undefined) throw gone("output");
        return held.copies();
      },
      load: (job, id, request) =>
        this.#job(job, async (state) => {
          const checkpoint = this.#checkpoint(id);
          await this.#forDevice(request as { device?: Device });
          const control = this.#control(job, state, checkpoint.meter, caller());
          const handle = await engine.Model.load(checkpoint.handle, request, control as never);
          const model = this.#nextId++;
          this.#models.set(model, { handle, checkpoint, queue: Promise.resolve() });
          const chat = await this.#tokenizer(checkpoint).then((codec) => codec.hasChatTemplate, () => false);
          return { id: model, info: handle.about() as ModelInfo, chat };
        }),
      generate: (job, id, prompt, request) =>
        this.#job(job, async (state) => {
          const model = this.#model(id);
          const codec = await this.#tokenizer(model.checkpoint);
          const ids = typeof prompt === "string" ? codec.encodePrompt(prompt) : prompt;
          return this.#generate(job, state, model, codec, ids, false, request, caller());
        }),
      chat: (job, id, messages, request) =>
        this.#job(job, async (state) => {
          const model = this.#model(id);
          const codec = await this.#tokenizer(model.checkpoint);
          // The template spells out every special token.
          const ids = codec.encode(codec.applyChatTemplate(messages as ChatMessage[]));
          return this.#generate(job, state, model, codec, ids, true, request, caller());
        }),
      logits: (job, id, ids) =>
        this.#job(job, async (state) => {
          const model = this.#model(id);
          const control = this.#control(job, state, model.checkpoint.meter, caller());
          return this.#queued(model, state, () => model.handle.logits(ids, control as never));
        }),
      perplexity: (job, id, request) =>
        this.#job(job, async (state) => {
          const model = this.#model(id);
          const codec = await this.#tokenizer(model.checkpoint);
          const control = this.#control(job, state, model.checkpoint.meter, caller());
          return this.#queued(model, state, () => model.handle.perplexity(request, codec as never, control as never));
        }),
      validate: (job, a, b, request) =>
        this.#job(job, async (state) => {
          const [original, quantized] = [this.#checkpoint(a), this.#checkpoint(b)];
          const codec = await this.#tokenizer(original);
          await this.#forDevice(request as { device?: Device });
          const scratch = await this.#platform.scratch();
          try {
            const control = this.#control(job, state, original.meter, caller());
            return await engine.validate(
              original.handle, quantized.handle, request, codec as never, scratch as never, control as never,
            );
          } finally {
            await scratch.dispose();
          }
        }),
      auto: (job, ids, request, target) =>
        this.#job(job, async (state) => {
          const sources = ids.map((id) => this.#checkpoint(id));
          const search = new engine.AutoJob();
          for (const source of sources) search.add(source.handle, (await this.#tokenizer(source)) as never);
          const root = await this.#place(target, caller());
          if (!root.readable) {
            throw new LowbitError("invalid_argument", "a search reads what it wrote, so its target cannot be streams");
          }
          const places = new Map<string, Place>();
          const inside = async (name: string) => {
            const place = places.get(name) ?? (await root.inside(name));
            places.set(name, place);
            return place;
          };
          const outputs = {
            summary: root.target,
            create: async (name: string) => (await inside(name)).target,
            open: async (name: string) => (await inside(name)).existing,
          };
          const scratch = await this.#platform.scratch();
          try {
            const control = this.#control(job, state, sources[0]?.meter ?? { bytes: 0 }, caller());
            const tell = (event: AutoEvent) => caller().told(job, event);
            const outcome: Searched["outcome"] = await search.run(
              request, outputs as never, scratch as never, tell, control as never,
            );
            const attempts: Searched["attempts"] = [];
            for (const { attempt, bytes } of outcome.summary.variants) {
              const place = attempt && places.get(attempt.name);
              if (attempt === undefined || place === undefined) continue;
              const record = (await readJson(place.existing, "quantization_config.json")) as QuantizationRecord;
              const written = await this.#written({ record, bytes } satisfies AttemptSummary, place);
              attempts.push({ name: attempt.name, written });
            }
            return { outcome, attempts };
          } finally {
            search.free();
            await scratch.dispose();
          }
        }),
      compare: (job, a, b, request) =>
        this.#job(job, async (state) => {
          const [first, second] = [this.#checkpoint(a), this.#checkpoint(b)];
          const codecs = [await this.#tokenizer(first), await this.#tokenizer(second)];
          await this.#forDevice(request as { device?: Device });
          const control = this.#control(job, state, first.meter, caller());
          return engine.compare(
            first.handle, second.handle, request, codecs[0] as never, codecs[1] as never, control as never,
          );
        }),
      encode: async (id, string) => (await this.#tokenizer(this.#checkpoint(id))).encodePrompt(string),
      decode: async (id, ids) => (await this.#tokenizer(this.#checkpoint(id))).decode(ids),
      capabilities: async () => {
        await this.#ready();
        await this.#prepareGpu().catch(() => {});
        const devices = await engine.devices();
        const { memory } = await this.#engine!;
        return { ...devices, engine: build, memory: memory.buffer.byteLength };
      },
      listCache: async () => {
        const store = await this.#platform.store();
        return store === undefined ? [] : cache.list(store);
      },
      deleteCache: async (url) => {
        const store = await this.#platform.store();
        if (store === undefined) return;
        if (url !== undefined) return cache.forget(store, url);
        await Promise.all((await store.keys()).map((key) => store.delete(key)));
      },
      abort: async (job) => {
        const state = this.#jobs.get(job);
        if (state !== undefined) state.aborted = true;
      },
      disposeCheckpoint: async (id) => {
        const held = this.#checkpoints.get(id);
        this.#checkpoints.delete(id);
        this.#folders.delete(id);
        held?.handle.free();
        (await held?.tokenizer?.catch(() => undefined))?.free();
      },
      disposeModel: async (id) => {
        const held = this.#models.get(id);
        this.#models.delete(id);
        await held?.queue.catch(() => {});
        held?.handle.free();
      },
    };
    const guarded = Object.entries(functions).map(([name, run]) => [
      name,
      async (...args: unknown[]) => {
        try {
          if (this.#broken !== undefined) throw this.#broken;
          return await (run as (...args: unknown[]) => Promise<unknown>)(...args);
        } catch (error) {
          const known = asLowbitError(error);
          if (known.code === "internal") this.#broken = known;
          throw known;
        }
      },
    ]);
    return Object.fromEntries(guarded) as HostFunctions;
  }

  /** Loads the engine, once. */
  async #ready(): Promise<void> {
    this.#engine ??= this.#load();
    try {
      await this.#engine;
    } catch (error) {
      this.#engine = undefined;
      throw new LowbitError("io", `the engine cannot be loaded: ${(error as Error).message}`, { cause: error });
    }
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
        engine = relaxed as unknown as EngineModule;
        build = "relaxed-simd";
        return loaded;
      } catch {
        // The other build is right everywhere.
      }
    }
    const loaded = await simd128.default({ module_or_path: (await this.#module("engine")) as never });
    simd128.selfCheck();
    return loaded;
  }

  async #store(wanted: boolean): Promise<Store | undefined> {
    return wanted ? this.#platform.store() : undefined;
  }

  async #module(name: "engine" | "engine_relaxed" | "tokenizer"): Promise<unknown> {
    return this.#given[name] ?? this.#platform.module(name);
  }

  async #job<T>(id: number, work: (job: Job) => Promise<T>): Promise<T> {
    const job = this.#jobs.get(id) ?? { aborted: false };
    this.#jobs.set(id, job);
    try {
      return await work(job);
    } finally {
      this.#jobs.delete(id);
    }
  }

  #control(job: number, state: Job, meter: Meter, caller: ClientFunctions) {
    return {
      progress: (phase: string, done: number, total: number, item: string) =>
        caller.progress(job, { phase, done, total, item, bytes: meter.bytes }),
      cancelled: () => state.aborted,
      turn: () => this.#platform.turn(),
      now: () => performance.now(),
    };
  }

  #checkpoint(id: number): HeldCheckpoint {
    const held = this.#checkpoints.get(id);
    if (held === undefined) throw gone("checkpoint");
    return held;
  }

  #model(id: number): HeldModel {
    const held = this.#models.get(id);
    if (held === undefined) throw gone("model");
    return held;
  }

  /** Does `work` after everything that the model was asked before. */
  #queued<T>(model: HeldModel, state: Job, work: () => Promise<T>): Promise<T> {
    const run = model.queue.then(() => {
      stopIfAborted(state);
      return work();
    });
    model.queue = run.catch(() => {});
    return run;
  }

  #generate(
    job: number, state: Job, model: HeldModel, codec: text.Tokenizer, ids: Uint32Array, chat: boolean,
    request: object, caller: ClientFunctions,
  ): Promise<GenerateResult> {
    const control = this.#control(job, state, model.checkpoint.meter, caller);
    const say = (piece: { token_id: number; text: string }) => caller.piece(job, piece.text, piece.token_id);
    return this.#queued(model, state, () =>
      model.handle.generate(ids, chat, request, codec as never, say, control as never),
    );
  }

  /** The tokenizer of a checkpoint, opened when it is first needed. */
  #tokenizer(held: HeldCheckpoint): Promise<text.Tokenizer> {
    held.tokenizer ??= this.#openTokenizer(held);
    return held.tokenizer;
  }

  async #openTokenizer(held: HeldCheckpoint): Promise<text.Tokenizer> {
    this.#text ??= this.#module("tokenizer").then((module) => text.default({ module_or_path: module as never }));
    await this.#text;
    const folder = held.tokenizerFolder;
    const files = folder ? await readTokenizerFiles(folder) : await held.handle.tokenizerFiles();
    const name = folder?.name ?? (held.handle.inspect() as CheckpointInfo).path;
    const tokenizer = await text.Tokenizer.open(name, files, held.handle.bosTokenId);
    held.handle.checkTokenizer(tokenizer as never);
    return tokenizer;
  }

  async #forDevice({ device }: { device?: Device }): Promise<void> {
    if (device === "cpu") return;
    try {
      await this.#prepareGpu();
    } catch (error) {
      if (device === "gpu") throw error;
    }
  }

  #prepareGpu(): Promise<void> {
    this.#gpu ??= this.#platform.prepareGpu();
    return this.#gpu;
  }

  #keep(handle: EngineCheckpoint, meter: Meter, tokenizerFolder?: Folder): CheckpointRef {
    const id = this.#nextId++;
    this.#checkpoints.set(id, { handle, meter, ...(tokenizerFolder && { tokenizerFolder }) });
    return { id, info: handle.inspect() as CheckpointInfo };
  }

  async #openSource(source: SourceSpec, options: object, caller: ClientFunctions, meter: Meter): Promise<EngineCheckpoint> {
    const opened = await this.#folder(source, caller, meter);
    if ("file" in opened) return engine.Checkpoint.openGguf(opened.file as never);
    return engine.Checkpoint.open(opened.folder as never, options);
  }

  async #folder(source: SourceSpec, caller: ClientFunctions, meter: Meter): Promise<{ folder: Folder } | { file: OpenFile }> {
    const opened = await this.#unmetered(source, caller);
    if ("file" in opened) return { file: metered(opened.file, meter) };
    const { folder } = opened;
    const open = async (file: string) => {
      stopIfAborted(meter.opening);
      const found = await folder.open(file);
      return found && metered(found, meter);
    };
    return { folder: { name: folder.name, open } };
  }

  async #unmetered(source: SourceSpec, caller: ClientFunctions): Promise<{ folder: Folder } | { file: OpenFile }> {
    switch (source.kind) {
      case "files": {
        const names = Object.keys(source.files);
        const only = names.length === 1 ? names[0]! : undefined;
        if (only !== undefined && only.toLowerCase().endsWith(".gguf")) {
          return { file: specFile(only, source.files[only]!, caller) };
        }
        return { folder: filesFolder(source.name, source.files, caller) };
      }
      case "url":
        return fromUrl(source.url, fetchWith(source.headers ?? {}), await this.#store(source.cache));
      case "remoteUrl":
        return fromUrl(source.url, (url, range, ifRange) => caller.fetchRange(source.id, url, range, ifRange), await this.#store(source.cache));
      case "path":
        if (this.#platform.openPath === undefined) {
          throw new LowbitError("invalid_argument", `${source.path}: there are no paths here; give a URL, files or a handle`);
        }
        return this.#platform.openPath(source.path);
      case "opfs":
        return { folder: directoryFolder(await opfsDirectory(source.path)) };
      case "directory":
        return { folder: directoryFolder(source.handle) };
    }
  }

  async #place(target: TargetSpec, caller: ClientFunctions): Promise<Place> {
    switch (target.kind) {
      case "memory": {
        const memory = new MemoryFolder("memory");
        return { target: memory, existing: memory, readable: true, memory, inside: () => this.#place(target, caller) };
      }
      case "path": {
        if (this.#platform.targetAtPath === undefined) {
          throw new LowbitError("invalid_argument", `${target.path}: there are no paths here; give a directory handle`);
        }
        const inside = (name: string) => this.#place({ kind: "path", path: `${target.path}/${name}` }, caller);
        return { ...(await this.#platform.targetAtPath(target.path)), readable: true, inside };
      }
      case "opfs":
        return this.#place({ kind: "directory", handle: await opfsDirectory(target.path) }, caller);
      case "directory": {
        const { handle } = target;
        const inside = async (name: string) =>
          this.#place({ kind: "directory", handle: await handle.getDirectoryHandle(name, { create: true }) }, caller);
        return { target: directoryTarget(handle), existing: directoryFolder(handle), readable: true, inside };
      }
      case "remote": {
        const inside = () => Promise.reject(new LowbitError("invalid_argument", "streams hold no folders"));
        return { target: callerTarget(target.id, caller), existing: EMPTY, readable: false, inside };
      }
    }
  }

  /** Opens what was written, where that is possible. */
  async #written<T>(summary: T, place: Place, gguf?: string): Promise<Written<T>> {
    if (!place.readable) return { summary };
    const meter = { bytes: 0 };
    const file = gguf === undefined ? undefined : await place.existing.open(gguf);
    const handle = file
      ? await engine.Checkpoint.openGguf(file as never)
      : await engine.Checkpoint.open(place.existing as never, {});
    const checkpoint = this.#keep(handle, meter);
    if (place.memory === undefined) return { summary, checkpoint };
    this.#folders.set(checkpoint.id, place.memory);
    return { summary, checkpoint, folder: checkpoint.id };
  }
}

async function fromUrl(url: string, get: Fetch, store?: Store): Promise<{ folder: Folder } | { file: OpenFile }> {
  const isFile = new URL(url).pathname.toLowerCase().endsWith(".gguf");
  return isFile ? { file: await openUrlFile(url, get, store) } : { folder: urlFolder(url, get, store) };
}

function folderOf(opened: { folder: Folder } | { file: OpenFile }): Folder {
  if ("folder" in opened) return opened.folder;
  throw new LowbitError("invalid_argument", `${opened.file.name}: expected a folder with a tokenizer.json but found a file`);
}

async function readJson(folder: Folder, name: string): Promise<unknown> {
  const file = await folder.open(name);
  if (file === undefined) throw new LowbitError("not_found", `${folder.name}: expected ${name} but found none`);
  return JSON.parse(new TextDecoder().decode(await file.read(0, file.size)));
}

const TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

async function readTokenizerFiles(folder: Folder): Promise<Record<string, Uint8Array>> {
  const files: Record<string, Uint8Array> = {};
  for (const name of TOKENIZER_FILES) {
    const file = await folder.open(name);
    if (file !== undefined) files[name] = await file.read(0, file.size);
  }
  return files;
}

function metered(file: OpenFile, meter: Meter): OpenFile {
  return {
    name: file.name,
    size: file.size,
    read: async (offset, length) => {
      stopIfAborted(meter.opening);
      const bytes = await file.read(offset, length);
      meter.bytes += bytes.length;
      return bytes;
    },
  };
}

function stopIfAborted(job: Job | undefined): void {
  if (job?.aborted) throw new LowbitError("cancelled", "cancelled before the end");
}

function gone(what: string): LowbitError {
  return new LowbitError("invalid_argument", `the ${what} was disposed of`);
}
