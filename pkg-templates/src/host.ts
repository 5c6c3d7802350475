/**
 * The engine's side: holds the WebAssembly modules, checkpoints and models, and does what the caller's side asks for.
 *
 * Runs in a worker, or in the caller's own thread; what differs between places is in the platform. Not here: what the caller
 * sees (`client.ts`).
 */
import * as engine from "./wasm/engine.js";
import * as text from "./wasm/tokenizer.js";
import { asLowbitError, LowbitError } from "./errors.js";
import {
  directoryFolder, fetchWith, filesFolder, MemoryFolder, openUrlFile, specFile, urlFolder, type Fetch,
} from "./folders.js";
import type { Folder, HostPlatform, ModuleSource, OpenFile, TargetFolder } from "./platform.js";
import { callerTarget, directoryTarget, EMPTY, opfsDirectory } from "./targets.js";
import { connect, type CheckpointRef, type ClientFunctions, type GivenModules, type HostFunctions, type Port, type SourceSpec, type TargetSpec, type Written } from "./wire.js";
import type { ChatMessage, CheckpointInfo, Device, GenerateResult, ModelInfo } from "./types.js";

/** A checkpoint, and its tokenizer once it was needed. */
interface HeldCheckpoint {
  handle: engine.Checkpoint;
  tokenizer?: Promise<text.Tokenizer>;
  /** Where the tokenizer comes from, where that is another folder. */
  tokenizerFolder?: Folder;
  meter: Meter;
}

interface HeldModel {
  handle: engine.Model;
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
  #engine: Promise<engine.InitOutput> | undefined;
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
          return this.#generate(job, state, model, codec, ids, request, caller());
        }),
      chat: (job, id, messages, request) =>
        this.#job(job, async (state) => {
          const model = this.#model(id);
          const codec = await this.#tokenizer(model.checkpoint);
          // The template spells out every special token.
          const ids = codec.encode(codec.applyChatTemplate(messages as ChatMessage[]));
          return this.#generate(job, state, model, codec, ids, request, caller());
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
        return { ...devices, engine: "simd128", memory: memory.buffer.byteLength };
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
    this.#engine ??= this.#module("engine").then((module) => engine.default({ module_or_path: module as never }));
    try {
      await this.#engine;
    } catch (error) {
      this.#engine = undefined;
      throw new LowbitError("io", `the engine cannot be loaded: ${(error as Error).message}`, { cause: error });
    }
  }

  async #module(name: "engine" | "engine_relaxed" | "tokenizer"): Promise<ModuleSource | string> {
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
    job: number, state: Job, model: HeldModel, codec: text.Tokenizer, ids: Uint32Array, request: object, caller: ClientFunctions,
  ): Promise<GenerateResult> {
    const control = this.#control(job, state, model.checkpoint.meter, caller);
    const say = (piece: { token_id: number; text: string }) => caller.piece(job, piece.text, piece.token_id);
    return this.#queued(model, state, () =>
      model.handle.generate(ids, request, codec as never, say, control as never),
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

  #keep(handle: engine.Checkpoint, meter: Meter, tokenizerFolder?: Folder): CheckpointRef {
    const id = this.#nextId++;
    this.#checkpoints.set(id, { handle, meter, ...(tokenizerFolder && { tokenizerFolder }) });
    return { id, info: handle.inspect() as CheckpointInfo };
  }

  async #openSource(source: SourceSpec, options: object, caller: ClientFunctions, meter: Meter): Promise<engine.Checkpoint> {
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
        return fromUrl(source.url, fetchWith(source.headers ?? {}));
      case "remoteUrl":
        return fromUrl(source.url, (url, range, ifRange) => caller.fetchRange(source.id, url, range, ifRange));
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
        return { target: memory, existing: memory, readable: true, memory };
      }
      case "path": {
        if (this.#platform.targetAtPath === undefined) {
          throw new LowbitError("invalid_argument", `${target.path}: there are no paths here; give a directory handle`);
        }
        return { ...(await this.#platform.targetAtPath(target.path)), readable: true };
      }
      case "opfs":
      case "directory": {
        const handle = target.kind === "opfs" ? await opfsDirectory(target.path) : target.handle;
        return { target: directoryTarget(handle), existing: directoryFolder(handle), readable: true };
      }
      case "remote":
        return { target: callerTarget(target.id, caller), existing: EMPTY, readable: false };
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

async function fromUrl(url: string, get: Fetch): Promise<{ folder: Folder } | { file: OpenFile }> {
  const isFile = new URL(url).pathname.toLowerCase().endsWith(".gguf");
  return isFile ? { file: await openUrlFile(url, get) } : { folder: urlFolder(url, get) };
}

function folderOf(opened: { folder: Folder } | { file: OpenFile }): Folder {
  if ("folder" in opened) return opened.folder;
  throw new LowbitError("invalid_argument", `${opened.file.name}: expected a folder with a tokenizer.json but found a file`);
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
