/**
 * Platform types such as `AbortSignal` and `Blob`. Each falls back to the part that this package uses, so the
 * declarations compile without the DOM's types and without Node's.
 */

type Instance<Name extends string, Otherwise> = typeof globalThis extends Record<Name, { prototype: infer T }> ? T : Otherwise;

export type PlatformSignal = Instance<
  "AbortSignal",
  { readonly aborted: boolean; readonly reason: unknown; addEventListener(type: "abort", listener: () => void): void; removeEventListener(type: "abort", listener: () => void): void }
>;
export type PlatformBlob = Instance<"Blob", { readonly size: number; arrayBuffer(): Promise<ArrayBuffer> }>;
export type PlatformFile = Instance<"File", { readonly name: string; readonly size: number; arrayBuffer(): Promise<ArrayBuffer> }>;
export type PlatformUrl = Instance<"URL", { readonly href: string }>;
export type PlatformResponse = Instance<
  "Response",
  { readonly ok: boolean; readonly status: number; readonly url: string; arrayBuffer(): Promise<ArrayBuffer> }
>;
export type PlatformModule = typeof globalThis extends { WebAssembly: { Module: { prototype: infer T } } } ? T : object;
export type PlatformFetch = typeof globalThis extends { fetch: infer T }
  ? T
  : (url: string, init?: { headers?: Record<string, string> }) => Promise<unknown>;

/** A writable stream of bytes, such as a `WritableStream<Uint8Array>`. */
export interface ByteStream {
  getWriter(): {
    write(bytes: Uint8Array): Promise<unknown>;
    close(): Promise<unknown>;
    abort(reason?: unknown): Promise<unknown>;
  };
}
