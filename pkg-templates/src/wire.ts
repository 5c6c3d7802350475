/**
 * Messages between the caller's thread and the engine's. All must be structured-cloneable. Not here: the public types
 * (`types.ts`).
 */
import { createBirpc } from "birpc";
import type { ModuleName, Port } from "./platform.js";
import { asLowbitError, LowbitError, type ErrorCode } from "./errors.js";
import type * as options from "./options.generated.js";
import type {
  AttemptSummary, AutoEvent, CachedFile, Capabilities, CheckpointInfo, ChatMessage, Comparison, ConvertSummary, DequantizeSummary,
  GenerateResult, ModelInfo, PerplexityResult, Plan, Progress, QuantizeSummary, SearchOutcome, ValidationReport,
} from "./types.js";

/** A file: bytes or a blob that are sent, or a file that stays on the caller's side and is read from there. */
export type FileSpec =
  | { kind: "bytes"; bytes: Uint8Array }
  | { kind: "blob"; blob: Blob }
  | { kind: "remote"; id: number; size: number };

/** The place of a checkpoint. */
export type SourceSpec =
  | { kind: "files"; name: string; files: Record<string, FileSpec> }
  | { kind: "url"; url: string; headers?: Record<string, string>; cache: boolean }
  | { kind: "path"; path: string }
  | { kind: "opfs"; path: string }
  | { kind: "directory"; handle: FileSystemDirectoryHandle }
  | { kind: "remoteUrl"; url: string; id: number; cache: boolean };

/** The place of output files. */
export type TargetSpec =
  | { kind: "memory" }
  | { kind: "path"; path: string }
  | { kind: "opfs"; path: string }
  | { kind: "directory"; handle: FileSystemDirectoryHandle }
  | { kind: "remote"; id: number };

/** The place of a resumable job's state. */
export type KeptSpec = { path: string } | { opfs: string };

/** An open checkpoint in the engine. */
export interface CheckpointRef {
  id: number;
  info: CheckpointInfo;
}

/** An output. It has a checkpoint if it can be read back. */
export interface Written<T> {
  summary: T;
  checkpoint?: CheckpointRef;
  /** The folder's number for `files`, if it is in memory. */
  folder?: number;
}

/** The result of a search, and the outputs of its attempts. */
export interface Searched {
  outcome: SearchOutcome;
  attempts: { name: string; written: Written<AttemptSummary> }[];
}

/** The owner of a tokenizer: a checkpoint, or a model, whose checkpoint may be disposed of already. */
export type TextOf = { checkpoint: number } | { model: number };

/** Modules that the caller provides, in structured-cloneable forms; a string is a URL. */
export type GivenModules = Readonly<Partial<Record<ModuleName, ArrayBuffer | Uint8Array | WebAssembly.Module | string>>>;

/** The functions of the engine's thread. `job` identifies the work for `abort` and progress. */
export interface HostFunctions {
  /** Uses modules that the caller provides. Must be the first call. */
  use(modules: GivenModules): Promise<void>;
  open(job: number, source: SourceSpec, tokenizer: SourceSpec | undefined, request: options.OpenOptions): Promise<CheckpointRef>;
  plan(checkpoint: number, request: options.PlanRequest): Promise<Plan>;
  planParameters(parameters: number, request: options.PlanRequest): Promise<Plan>;
  quantize(
    job: number, checkpoint: number, request: options.QuantizeRequest, kept: KeptSpec | undefined, target: TargetSpec,
  ): Promise<Written<QuantizeSummary>>;
  dequantize(
    job: number, checkpoint: number, original: number | undefined, request: options.DequantizeRequest, target: TargetSpec,
  ): Promise<Written<DequantizeSummary>>;
  convert(job: number, checkpoint: number, request: options.ConvertRequest, target: TargetSpec): Promise<Written<ConvertSummary>>;
  files(folder: number): Promise<Record<string, Uint8Array>>;
  load(job: number, checkpoint: number, request: options.LoadRequest): Promise<{ id: number; info: ModelInfo; chat: boolean }>;
  generate(job: number, model: number, prompt: string | Uint32Array, request: options.GenerateOptions): Promise<GenerateResult>;
  chat(job: number, model: number, messages: readonly ChatMessage[], request: options.GenerateOptions): Promise<GenerateResult>;
  logits(job: number, model: number, ids: Uint32Array): Promise<Float32Array>;
  perplexity(job: number, model: number, request: options.PerplexityRequest): Promise<PerplexityResult>;
  validate(job: number, original: number, quantized: number, request: options.ValidateRequest): Promise<ValidationReport>;
  auto(job: number, checkpoints: readonly number[], request: options.AutoRequest, target: TargetSpec): Promise<Searched>;
  compare(job: number, a: number, b: number, request: options.CompareRequest): Promise<Comparison[]>;
  encode(of: TextOf, text: string): Promise<Uint32Array>;
  decode(of: TextOf, ids: Uint32Array): Promise<string>;
  capabilities(): Promise<Omit<Capabilities, "worker">>;
  listCache(): Promise<CachedFile[]>;
  /** Deletes the cached parts of one URL, or all. */
  deleteCache(url?: string): Promise<void>;
  abort(job: number): Promise<void>;
  disposeCheckpoint(id: number): Promise<void>;
  disposeModel(id: number): Promise<void>;
  /** Cancels all work and frees everything. Must be the last call. */
  end(): Promise<void>;
}

/** The functions of the caller's thread. */
export interface ClientFunctions {
  /** An event: the engine does not wait. */
  progress(job: number, progress: Omit<Progress, "etaSeconds">): void;
  /** An event of a search. */
  told(job: number, event: AutoEvent): void;
  /** A generated piece. The engine waits until it is taken. */
  piece(job: number, text: string, tokenId: number): Promise<void>;
  readFile(id: number, offset: number, length: number): Promise<Uint8Array>;
  fetchRange(id: number, url: string, range: string | undefined, ifRange: string | undefined): Promise<RangeAnswer>;
  createFile(target: number, file: string): Promise<number>;
  writeFile(writer: number, bytes: Uint8Array): Promise<void>;
  closeFile(writer: number): Promise<void>;
  abortFile(writer: number): Promise<void>;
}

/** The answer to a request. */
export interface RangeAnswer {
  status: number;
  headers: Record<string, string>;
  /** The requested bytes; or the start of a page that came instead; or nothing. */
  body: Uint8Array;
  /** Whether the caller's headers included `authorization`. */
  authorized: boolean;
}

interface Answer {
  t: "s";
  e?: unknown;
}

/** Turns errors into plain objects, because structured clone drops an error's `code`. */
function pack(message: Answer): unknown {
  if (message.t !== "s" || message.e === undefined) return message;
  const { code, message: text, stack } = asLowbitError(message.e);
  return { ...message, e: { code, text, stack } };
}

function unpack(message: Answer): unknown {
  if (message.t !== "s" || message.e === undefined) return message;
  const { code, text } = message.e as { code: ErrorCode; text: string };
  return { ...message, e: new LowbitError(code, text) };
}

/** Control of a connection. */
export interface Connection {
  /** Closes it. Pending calls fail with `error`. */
  $close(error?: Error): void;
}

/** Functions without an answer: reporting does not wait, and a listener's failure does not fail the job. */
const EVENTS: readonly (keyof ClientFunctions)[] = ["progress", "told"];

/** Serves `functions` at one end of a connection, and returns the functions of the other end. */
export function connect<Remote extends object, Local extends object>(
  port: Port,
  functions: Local,
): Remote & Connection {
  const remote = createBirpc<Remote, Local>(functions, {
    post: (message) => port.post(message),
    on: (listener) => port.listen(listener),
    serialize: pack,
    deserialize: unpack,
    bind: "functions",
    // No timeout: jobs may run long, and the caller can abort them.
    timeout: -1,
    eventNames: EVENTS as never,
  });
  return remote as unknown as Remote & Connection;
}

/**
 * The two ends of a connection within one thread. Messages arrive asynchronously, as between threads, in a later
 * microtask.
 */
export function pair(): [Port, Port] {
  const listeners: ((message: unknown) => void)[][] = [[], []];
  const end = (mine: number, other: number): Port => ({
    post: (message) => queueMicrotask(() => listeners[other]!.forEach((listener) => listener(message))),
    listen: (listener) => void listeners[mine]!.push(listener),
  });
  return [end(0, 1), end(1, 0)];
}
