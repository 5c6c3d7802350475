/**
 * What passes between the caller's thread and the engine's: only what structured clone can carry.
 *
 * Not here: what the caller sees (`types.ts`).
 */
import { createBirpc } from "birpc";
import type { ModuleName, Port } from "./platform.js";
import { asLowbitError, LowbitError, type ErrorCode } from "./errors.js";
import type * as options from "./options.generated.js";
import type {
  AttemptSummary, AutoEvent, CachedFile, Capabilities, CheckpointInfo, ChatMessage, Comparison, ConvertSummary, DequantizeSummary,
  GenerateResult, ModelInfo, PerplexityResult, Plan, Progress, QuantizeSummary, SearchOutcome, ValidationReport,
} from "./types.js";

/** One file: bytes that travel, or a file that stays with the caller and is read from there. */
export type FileSpec =
  | { kind: "bytes"; bytes: Uint8Array }
  | { kind: "blob"; blob: Blob }
  | { kind: "remote"; id: number; size: number };

/** Where a checkpoint is. */
export type SourceSpec =
  | { kind: "files"; name: string; files: Record<string, FileSpec> }
  | { kind: "url"; url: string; headers?: Record<string, string>; cache: boolean }
  | { kind: "path"; path: string }
  | { kind: "opfs"; path: string }
  | { kind: "directory"; handle: FileSystemDirectoryHandle }
  | { kind: "remoteUrl"; url: string; id: number; cache: boolean };

/** Where files are written. */
export type TargetSpec =
  | { kind: "memory" }
  | { kind: "path"; path: string }
  | { kind: "opfs"; path: string }
  | { kind: "directory"; handle: FileSystemDirectoryHandle }
  | { kind: "remote"; id: number };

/** Where state is kept from one job to another. */
export type KeptSpec = { path: string } | { opfs: string };

/** A checkpoint that the engine holds. */
export interface CheckpointRef {
  id: number;
  info: CheckpointInfo;
}

/** An output, and the checkpoint that it is where it can be read again. */
export interface Written<T> {
  summary: T;
  checkpoint?: CheckpointRef;
  /** A folder in memory, for `files`. */
  folder?: number;
}

/** How a search ended, and what every attempt left. */
export interface Searched {
  outcome: SearchOutcome;
  attempts: { name: string; written: Written<AttemptSummary> }[];
}

/** Whose tokenizer: a checkpoint's, or that of the one that a model was loaded from, whatever became of it. */
export type TextOf = { checkpoint: number } | { model: number };

/** Modules that the caller brings: what structured clone can carry, or the text of a URL. */
export type GivenModules = Readonly<Partial<Record<ModuleName, ArrayBuffer | Uint8Array | WebAssembly.Module | string>>>;

/** What the engine's thread does. `job` names the work for `abort` and for progress. */
export interface HostFunctions {
  /** Takes modules that the caller brings, before anything else is asked for. */
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
  /** Of one URL, or all. */
  deleteCache(url?: string): Promise<void>;
  abort(job: number): Promise<void>;
  disposeCheckpoint(id: number): Promise<void>;
  disposeModel(id: number): Promise<void>;
  /** Stops all work and frees everything; nothing can be asked for afterwards. */
  end(): Promise<void>;
}

/** What the caller's thread does for the engine. */
export interface ClientFunctions {
  /** An event: nobody waits for it. */
  progress(job: number, progress: Omit<Progress, "etaSeconds">): void;
  /** An event of a search. */
  told(job: number, event: AutoEvent): void;
  /** The engine waits until the piece is taken. */
  piece(job: number, text: string, tokenId: number): Promise<void>;
  readFile(id: number, offset: number, length: number): Promise<Uint8Array>;
  fetchRange(id: number, url: string, range: string | undefined, ifRange: string | undefined): Promise<RangeAnswer>;
  createFile(target: number, file: string): Promise<number>;
  writeFile(writer: number, bytes: Uint8Array): Promise<void>;
  closeFile(writer: number): Promise<void>;
  abortFile(writer: number): Promise<void>;
}

/** An answer to a request that the caller's own `fetch` made. */
export interface RangeAnswer {
  status: number;
  headers: Record<string, string>;
  /** What was asked for; the start of a page, where one came instead; otherwise nothing. */
  body: Uint8Array;
  /** Whether the request had an `authorization` of the caller's. */
  authorized: boolean;
}

interface Answer {
  t: "s";
  e?: unknown;
}

/** Errors travel as plain objects, because structured clone leaves an error's `code` behind. */
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

/** What can be done with a connection beside calling. */
export interface Connection {
  /** Ends it; calls that wait for an answer fail with `error`. */
  $close(error?: Error): void;
}

/** What nobody answers: who tells of progress does not wait, and a listener's failure is no failure of the work. */
const EVENTS: readonly (keyof ClientFunctions)[] = ["progress", "told"];

/** Ties `functions` to one end of a connection; gives the functions of the other end. */
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
    // Long work is not late; whoever has enough of it aborts it.
    timeout: -1,
    eventNames: EVENTS as never,
  });
  return remote as unknown as Remote & Connection;
}

/** The two ends of a connection inside one thread. Messages arrive in a later microtask, as they do between threads. */
export function pair(): [Port, Port] {
  const listeners: ((message: unknown) => void)[][] = [[], []];
  const end = (mine: number, other: number): Port => ({
    post: (message) => queueMicrotask(() => listeners[other]!.forEach((listener) => listener(message))),
    listen: (listener) => void listeners[mine]!.push(listener),
  });
  return [end(0, 1), end(1, 0)];
}
