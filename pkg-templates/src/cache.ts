/**
 * Keeps pieces of downloaded files from one visit to the next, so that the second one needs no network.
 *
 * A file is kept under its URL and its ETag, in blocks; what a server does not tag is not kept. Where the pieces lie is the
 * platform's (`Store`). A store that is full or broken keeps nothing, and the work goes on without it.
 */
import { LowbitError } from "./errors.js";
import { pageIn } from "./pages.js";
import type { Missing, OpenFile, Store } from "./platform.js";
import type { CachedFile } from "./types.js";

/** Bytes of a block. */
const BLOCK = 1 << 20;

/** Blocks that are fetched by one request at most. */
const AT_ONCE = 16;

/** What is known of a file without asking for it. */
interface Known extends Omit<Missing, "missing"> {
  /** Absent where the server has no such file. */
  size?: number;
  /** Where there is no such file any more, that of the blocks that may still be kept. */
  etag?: string;
}

const metaKey = (url: string) => `file ${url}`;
const blockKey = (url: string, etag: string, index: number) => `block ${index} ${etag} ${url}`;

/** A file as the network gives it. */
export type OpenFresh = () => Promise<(OpenFile & { etag?: string }) | Missing>;

/** The file at `url`, from the store as far as it is there. */
export async function openCached(name: string, url: string, store: Store, fresh: OpenFresh): Promise<OpenFile | Missing> {
  const known = await recall(store, url);
  let file: Awaited<ReturnType<OpenFresh>>;
  try {
    file = await fresh();
  } catch (error) {
    // Nobody answers; what is kept may do. An answer that is an error stays one.
    if (known === undefined || !(error instanceof LowbitError && error.code === "io")) throw error;
    const { size, etag, ...absence } = known;
    if (size === undefined) return { missing: true, ...absence };
    // A page that was once taken for the file. Its type is not kept.
    const start = await store.get(blockKey(url, etag!, 0)).catch(() => undefined);
    const page = start && pageIn(name, undefined, start);
    if (page !== undefined) return { missing: true, why: `the server once answered ${page}` };
    const gone = async () => {
      throw new LowbitError("io", `${url}: the network is away, and this part of the file is not kept`, { cause: error });
    };
    return blocks({ name, size, read: gone }, url, etag!, store);
  }
  if ("missing" in file) {
    // A network that wants a log-in hides files for a while: their blocks stay, for when they are there again.
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

/** Takes a file out of the store. */
export async function forget(store: Store, url: string): Promise<void> {
  const keys = await store.keys();
  await Promise.all(keys.filter((key) => key.endsWith(` ${url}`)).map((key) => store.delete(key)));
}

/** Every file of which anything is kept. */
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
