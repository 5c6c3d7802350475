/** What an entry point brings: how modules, files and threads are found where the package runs. */
import type { PlatformModule, PlatformResponse, PlatformSignal, PlatformUrl } from "./ambient.js";
import type { ErrorCode } from "./errors.js";

/** One end of a connection. */
export interface Port {
  post(message: unknown): void;
  listen(listener: (message: unknown) => void): void;
}

/** A folder that is read, as the engine's bindings see it. */
export interface Folder {
  readonly name: string;
  /** The bindings give no signal; this side does, where a request need not go on. */
  open(file: string, signal?: PlatformSignal): Promise<OpenFile | undefined>;
  /** What was not there when it was last looked for, where its server said more than that. */
  readonly missing?: ReadonlyMap<string, Missing>;
}

/** That a file is not there. */
export interface Missing {
  missing: true;
  /** What the server answered, where that is of use to somebody who needs the file. */
  why?: string;
  /** The code of an error about it, where that is not the one of missing files. */
  code?: ErrorCode;
}

/** A file that is read, as the engine's bindings see it. */
export interface OpenFile {
  readonly name: string;
  readonly size: number;
  /** Gives exactly `length` bytes; the array is copied from at once. */
  read(offset: number, length: number, signal?: PlatformSignal): Promise<Uint8Array>;
}

/** A folder that is written, as the engine's bindings see it. */
export interface TargetFolder {
  readonly name: string;
  /** Its finished files, to read: before the first is written, what stands there already. */
  readonly existing: Folder;
  create(file: string): Promise<Sink>;
  remove(file: string): Promise<void>;
  removeUnfinished(): Promise<void>;
}

/** A file being written, as the engine's bindings see it. It appears under its name with `finish`. */
export interface Sink {
  write(bytes: Uint8Array): Promise<void>;
  finish(): Promise<void>;
  /** Nobody but this side waits for what it gives. */
  abort(): Promise<void> | void;
}

/** Where the attempts of a search go, as the engine's bindings see it. */
export interface Outputs {
  readonly summary: TargetFolder;
  /** The folder of an attempt. */
  create(name: string): Promise<TargetFolder>;
}

/** How the engine's bindings tell how far they are, and hear that they shall stop. */
export interface Control {
  progress(phase: string, done: number, total: number, item: string): void;
  cancelled(): boolean;
  turn(): Promise<void>;
  /** Milliseconds. */
  now(): number;
}

/** A tokenizer, as the engine's bindings see it. */
export interface Codec {
  encode(text: string): Uint32Array;
  encodePrompt(text: string): Uint32Array;
  decode(ids: Uint32Array): string;
  readonly bosTokenId: number | undefined;
  readonly vocabSize: number;
}

/** The WebAssembly modules. The quantizer belongs to the engine of the same build. */
export type ModuleName = "engine" | "engine_relaxed" | "quantizer" | "quantizer_relaxed" | "tokenizer";

/** What a module is made from, as its bindings take it. */
export type ModuleInput = PlatformResponse | PlatformUrl | string | ArrayBuffer | Uint8Array<ArrayBuffer> | PlatformModule;

/** Blobs that are written and read again, as the engine's bindings see them. */
export interface Scratch {
  writeAt(blob: string, offset: number, bytes: Uint8Array): Promise<void>;
  readAt(blob: string, offset: number, length: number): Promise<Uint8Array>;
  size(blob: string): Promise<number | undefined>;
  delete(blob: string): Promise<void>;
  /** Of all blobs. */
  names(): Promise<string[]>;
  /** Gives back whatever is left. */
  dispose(): Promise<void>;
}

/** Named bytes that outlast a visit. */
export interface Store {
  get(key: string): Promise<Uint8Array | undefined>;
  put(key: string, bytes: Uint8Array): Promise<void>;
  keys(): Promise<string[]>;
  delete(key: string): Promise<void>;
}

/** What the engine's thread needs of the place that it runs in. */
export interface HostPlatform {
  /** What a module is made from. */
  module(name: ModuleName): Promise<ModuleInput>;
  /** A path's folder or file; absent where there are no paths. */
  openPath?(path: string): Promise<{ folder: Folder } | { file: OpenFile }>;
  targetAtPath?(path: string): Promise<TargetFolder>;
  scratch(): Promise<Scratch>;
  /** Scratch space that outlasts its job, unless the job empties it. */
  keptScratch(place: { path: string } | { opfs: string }): Promise<Scratch>;
  /** What keeps downloads; `undefined` where nothing does. */
  store(): Promise<Store | undefined>;
  /** Makes `navigator.gpu` be there, where that takes doing. Rejects with `no_device` where there is no way. */
  prepareGpu(): Promise<void>;
  /** Gives the event loop a turn. */
  turn(): Promise<void>;
}

/** A thread that runs the engine. */
export interface Thread {
  port: Port;
  /** Whether the thread may keep the program alive. */
  hold(alive: boolean): void;
  /** Called when the thread itself fails. */
  onFailure(listener: (error: unknown) => void): void;
  /** Ends it; resolves when it has, as far as that can be known. */
  terminate(): Promise<void>;
}

/** What the caller's thread needs. */
export interface ClientPlatform {
  /** Whether a text names a path. */
  isPath(text: string): boolean;
  startWorker(): Thread;
  /** The engine in this very thread. */
  startHere(): Promise<Thread>;
}
