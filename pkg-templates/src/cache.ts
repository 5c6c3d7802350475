/**
 * Cache of downloaded file blocks, so that a second visit needs no network.
 *
 * Blocks are keyed by URL and ETag. A file without a strong ETag is not cached. The platform provides the storage
 * (`Store`). If it is full or broken, nothing more is cached and the work continues.
 */
import { LowbitError } from "./errors.js";
import { pageIn } from "./pages.js";
import type { Missing, OpenFile, Store } from "./platform.js";
import type { CachedFile } from "./types.js";

/** Bytes in a block. */
const BLOCK = 1 << 20;

/** Maximal number of blocks in one request. */
const AT_ONCE = 16;

/** Stored metadata of a file. */
interface Known extends Omit<Missing, "missing"> {
  /** Bytes; absent if the server had no such file. */
  size?: number;
  /** ETag of the stored blocks. Kept when the file disappears from the server. */
  etag?: string;
}

const metaKey = (url: string) => `file ${url}`;
const blockKey = (url: string, etag: string, index: number) => `block ${index} ${etag} ${url}`;

/** Opens a file over the network. */
export type OpenFresh = () => Promise<(OpenFile & { etag?: string }) | Missing>;

/** Opens the file at `url`. Reads stored blocks from the store, and fetches and stores the others. */
export async function openCached(name: string, url: string, store: Store, fresh: OpenFresh): Promise<OpenFile | Missing> {
  const known = await recall(store, url);
  let file: Awaited<ReturnType<OpenFresh>>;
  try {
    file = await fresh();
  } catch (error) {
    // Without a network, use the stored blocks. Other errors stay errors.
    if (known === undefined || !(error instanceof LowbitError && error.code === "io")) throw error;
    const { size, etag, ...absence } = known;
    if (size === undefined) return { missing: true, ...absence };
    // The stored block may be a web page that was mistaken for the file. Its content type is not stored.
    const start = await store.get(blockKey(url, etag!, 0)).catch(() => undefined);
    const page = start && pageIn(name, undefined, start);
    if (page !== undefined) return { missing: true, why: `the server once answered ${page}` };
    const gone = async () => {
      throw new LowbitError("io", `${url}: the network is unavailable, and this part of the file is not cached`, { cause: error });
    };
    return blocks({ name, size, read: gone }, url, etag!, store);
  }
  if ("missing" in file) {
    // A network with a log-in page hides files for a while, so their blocks stay.
    const { missing, ...absence } = file;
    await remember(store, url, { ...absence, ...(known?.etag !== undefined && { etag: known.etag }) });
    return file;
  }
  if (file.etag === undefined) return file;
  if (known?.etag !== undefined && known.etag !== file.etag) await forget(store, url);
  await remember(store, url, { size: file.size, etag: file.etag });
  return blocks(file, url, file.etag, store);
}

function blocks(file: OpenFile, url: string, etag: string, store: Store): OpenFile {
  const { name, size } = file;
  let open = true;
  const block = async (index: number): Promise<Uint8Array | undefined> => {
    const bytes = await store.get(blockKey(url, etag, index)).catch(() => undefined);
    return bytes?.length === Math.min(BLOCK, size - index * BLOCK) ? bytes : undefined;
  };
  const keep = async (index: number, bytes: Uint8Array) => {
    if (open) await store.put(blockKey(url, etag, index), bytes).catch(() => void (open = false));
  };
  return {
    name,
    size,
    read: async (offset, length, signal) => {
      const out = new Uint8Array(length);
      const end = offset + length;
      const put = (start: number, bytes: Uint8Array) => {
        const from = Math.max(start, offset);
        const to = Math.min(start + bytes.length, end);
        if (from < to) out.set(bytes.subarray(from - start, to - start), from - offset);
      };
      const last = Math.ceil(end / BLOCK);
      for (let index = Math.floor(offset / BLOCK); index < last; ) {
        const held = await block(index);
        if (held !== undefined) {
          put(index * BLOCK, held);
          index += 1;
          continue;
        }
        let count = 1;
        while (count < AT_ONCE && index + count < last && (await block(index + count)) === undefined) count += 1;
        const start = index * BLOCK;
        const fetched = await file.read(start, Math.min(count * BLOCK, size - start), signal);
        put(start, fetched);
        for (let part = 0; part < count; part += 1) {
          await keep(index + part, fetched.slice(part * BLOCK, (part + 1) * BLOCK));
        }
        index += count;
      }
      return out;
    },
  };
}

async function recall(store: Store, url: string): Promise<Known | undefined> {
  const bytes = await store.get(metaKey(url)).catch(() => undefined);
  if (bytes === undefined) return undefined;
  try {
    return JSON.parse(new TextDecoder().decode(bytes)) as Known;
  } catch {
    return undefined;
  }
}

async function remember(store: Store, url: string, known: Known): Promise<void> {
  await store.put(metaKey(url), new TextEncoder().encode(JSON.stringify(known))).catch(() => {});
}

/** Removes a file from the store. */
export async function forget(store: Store, url: string): Promise<void> {
  const keys = await store.keys();
  await Promise.all(keys.filter((key) => key.endsWith(` ${url}`)).map((key) => store.delete(key)));
}

/** All files with stored blocks. */
export async function list(store: Store): Promise<CachedFile[]> {
  const keys = await store.keys();
  const files: CachedFile[] = [];
  for (const key of keys.filter((key) => key.startsWith("file "))) {
    const url = key.slice("file ".length);
    const known = await recall(store, url);
    if (known?.size === undefined || known.etag === undefined) continue;
    const { size, etag } = known;
    const held = keys.filter((other) => other.startsWith("block ") && other.endsWith(` ${etag} ${url}`));
    const bytes = held.reduce((sum, other) => sum + Math.min(BLOCK, size - Number(other.split(" ")[1]) * BLOCK), 0);
    files.push({ url, size, bytes });
  }
  return files;
}
