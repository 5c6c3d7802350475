/** Interfaces of a platform: how it finds modules, files and threads. */
import type { PlatformModule, PlatformResponse, PlatformSignal, PlatformUrl } from "./ambient.js";
import type { ErrorCode } from "./errors.js";

/** One end of a connection. */
export interface Port {
  post(message: unknown): void;
  listen(listener: (message: unknown) => void): void;
}

/** A folder to read, for the engine's bindings. */
export interface Folder {
  readonly name: string;
  /** The bindings pass no signal. The engine side does, to stop requests. */
  open(file: string, signal?: PlatformSignal): Promise<OpenFile | undefined>;
  /** Files that were missing at the last attempt, if the server gave a reason. */
  readonly missing?: ReadonlyMap<string, Missing>;
}

/** A missing file. */
export interface Missing {
  missing: true;
  /** The server's answer, if it helps someone who needs the file. */
  why?: string;
  /** The code of an error about it, if not `not_found`. */
  code?: ErrorCode;
}

/** A file to read, for the engine's bindings. */
export interface OpenFile {
  readonly name: string;
  readonly size: number;
  /** Reads exactly `length` bytes. The bindings copy them at once. */
  read(offset: number, length: number, signal?: PlatformSignal): Promise<Uint8Array>;
}

/** A folder to write, for the engine's bindings. */
export interface TargetFolder {
  readonly name: string;
  /** Its finished files, to read; initially those from before the job. */
  readonly existing: Folder;
  create(file: string): Promise<Sink>;
  remove(file: string): Promise<void>;
  removeUnfinished(): Promise<void>;
}

/** A file being written, for the engine's bindings. It appears under its name on `finish`. */
export interface Sink {
  write(bytes: Uint8Array): Promise<void>;
  finish(): Promise<void>;
  /** The bindings do not wait for the promise; only the engine side does. */
  abort(): Promise<void> | void;
}

/** The targets of a search's attempts, for the engine's bindings. */
export interface Outputs {
  readonly summary: TargetFolder;
  /** Creates the folder of an attempt. */
  create(name: string): Promise<TargetFolder>;
}

/** Progress and cancellation, for the engine's bindings. */
export interface Control {
  progress(phase: string, done: number, total: number, item: string): void;
  cancelled(): boolean;
  turn(): Promise<void>;
  /** Milliseconds. */
  now(): number;
}

/** A tokenizer, for the engine's bindings. */
export interface Codec {
  encode(text: string): Uint32Array;
  encodePrompt(text: string): Uint32Array;
  decode(ids: Uint32Array): string;
  readonly bosTokenId: number | undefined;
  readonly vocabSize: number;
  readonly hasChatTemplate: boolean;
  applyChatTemplate(messages: readonly object[]): string;
}

/** The WebAssembly modules. The quantizer belongs to the engine of the same build. */
export type ModuleName = "engine" | "engine_relaxed" | "quantizer" | "quantizer_relaxed" | "tokenizer";

/** Input from which the bindings create a module. */
export type ModuleInput = PlatformResponse | PlatformUrl | string | ArrayBuffer | Uint8Array<ArrayBuffer> | PlatformModule;

/** Named blobs for temporary data, for the engine's bindings. */
export interface Scratch {
  writeAt(blob: string, offset: number, bytes: Uint8Array): Promise<void>;
  readAt(blob: string, offset: number, length: number): Promise<Uint8Array>;
  size(blob: string): Promise<number | undefined>;
  delete(blob: string): Promise<void>;
  /** The names of all blobs. */
  names(): Promise<string[]>;
  /** Releases everything. */
  dispose(): Promise<void>;
}

/** Persistent storage of bytes by key. */
export interface Store {
  get(key: string): Promise<Uint8Array | undefined>;
  put(key: string, bytes: Uint8Array): Promise<void>;
  keys(): Promise<string[]>;
  delete(key: string): Promise<void>;
}

/** The platform of the engine's thread. */
export interface HostPlatform {
  /** Finds a module. */
  module(name: ModuleName): Promise<ModuleInput>;
  /** Opens the folder or file at a path. Absent in browsers. */
  openPath?(path: string): Promise<{ folder: Folder } | { file: OpenFile }>;
  targetAtPath?(path: string): Promise<TargetFolder>;
  scratch(): Promise<Scratch>;
  /** Scratch space that persists after the job, unless the job empties it. */
  keptScratch(place: { path: string } | { opfs: string }): Promise<Scratch>;
  /** The cache of downloads; `undefined` if not available. */
  store(): Promise<Store | undefined>;
  /** Ensures that `navigator.gpu` exists. Rejects with `no_device` if it cannot. */
  prepareGpu(): Promise<void>;
  /** Yields to the event loop. */
  turn(): Promise<void>;
}

/** A thread that runs the engine. */
export interface Thread {
  port: Port;
  /** Whether the thread may keep the program alive. */
  hold(alive: boolean): void;
  /** Calls the listener if the thread itself fails. */
  onFailure(listener: (error: unknown) => void): void;
  /** Ends it. Resolves after its end, or at once where a worker does not report it. */
  terminate(): Promise<void>;
}

/** The platform of the caller's thread. */
export interface ClientPlatform {
  /** Whether a string is a path. */
  isPath(text: string): boolean;
  startWorker(): Thread;
  /** Starts the engine in the caller's thread. */
  startHere(): Promise<Thread>;
}
