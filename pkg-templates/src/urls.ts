/** Files and folders behind URLs, read by ranges. */
import { openCached } from "./cache.js";
import { asLowbitError, LowbitError } from "./errors.js";
import { bytesFile, joined } from "./folders.js";
import type { Folder, OpenFile, Store } from "./platform.js";
import type { RangeAnswer } from "./wire.js";

/** Makes one request. `range` and `ifRange` are the values of the headers of those names. */
export type Fetch = (url: string, range?: string, ifRange?: string, signal?: AbortSignal) => Promise<RangeAnswer>;

/** Requests by the thread's own `fetch`. */
export function fetchWith(headers: Record<string, string>, fetcher: typeof fetch = fetch): Fetch {
  return async (url, range, ifRange, signal) => {
    const asked: Record<string, string> = { ...headers };
    if (range !== undefined) asked["range"] = range;
    if (ifRange !== undefined) asked["if-range"] = ifRange;
    let response: Response;
    try {
      // Ranges of a compressed body would be ranges of something else; browsers ask for `identity` themselves then.
      response = await fetcher(url, { headers: asked, signal });
    } catch (error) {
      throw new LowbitError("io", `${url}: ${reason(error)}`, { cause: error });
    }
    if (typeof response?.status !== "number" || typeof response.headers?.get !== "function") {
      throw new LowbitError("invalid_argument", `${url}: expected \`fetch\` to give a Response but found something else`);
    }
    const picked: Record<string, string> = {};
    for (const name of ["content-range", "content-length", "etag", "last-modified", "x-error-message"]) {
      const value = response.headers.get(name);
      if (value !== null) picked[name] = value;
    }
    const { status } = response;
    if (range === undefined ? status !== 200 : status !== 206) {
      // Nothing that is of use; where the server knows no ranges, everything, perhaps more than fits.
      await response.body?.cancel?.().catch(() => {});
      return { status, headers: picked, body: new Uint8Array() };
    }
    let body: Uint8Array | undefined;
    try {
      body = await bodyOf(response, range === undefined ? WHOLE : lengthOf(range));
    } catch (error) {
      throw new LowbitError("io", `${url}: the download broke off: ${reason(error)}`, { cause: error });
    }
    if (body !== undefined) return { status, headers: picked, body };
    throw new LowbitError("io", `${url}: ${range === undefined ? TOO_LARGE : "the server sent more than was asked for"}`);
  };
}

/** Why a request failed. `fetch` of Node says that in the cause. */
function reason(error: unknown): string {
  const { message } = asLowbitError(error);
  const cause = (error as { cause?: { message?: unknown } } | null | undefined)?.cause?.message;
  return typeof cause === "string" && cause !== "" ? `${message}: ${cause}` : message;
}

/** How many bytes `bytes=FIRST-LAST` asks for. */
function lengthOf(range: string): number {
  const [first, last] = range.slice("bytes=".length).split("-");
  return Number(last) - Number(first) + 1;
}

/** The body, where it has no more than so many bytes. */
async function bodyOf(response: Response, most: number): Promise<Uint8Array | undefined> {
  // Implementations of `fetch` by others may have no such streams.
  if (typeof response.body?.getReader !== "function") {
    const bytes = new Uint8Array(await response.arrayBuffer());
    return bytes.length > most ? undefined : bytes;
  }
  const reader = response.body.getReader();
  const pieces: Uint8Array[] = [];
  let length = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return joined(pieces);
    length += value.length;
    if (length > most) {
      await reader.cancel().catch(() => {});
      return undefined;
    }
    pieces.push(value);
  }
}

/** Small reads are gathered: a request costs more than its bytes. */
const BLOCK = 1 << 18;

/** Files no larger than this are fetched whole where a server knows no ranges. */
const WHOLE = 64 << 20;
const TOO_LARGE = `the server does not answer range requests, and the file has more than ${WHOLE} bytes, too many to hold`;

/** A file behind a URL, read by ranges. */
async function urlFile(
  name: string, url: string, get: Fetch, opening?: AbortSignal,
): Promise<(OpenFile & { etag?: string }) | undefined> {
  const first = await get(url, `bytes=0-${BLOCK - 1}`, undefined, opening);
  const refused = ({ status, headers }: RangeAnswer) => {
    const hint = status === 401 ? "a token goes into `headers`" : undefined;
    // The Hugging Face hub says there why.
    const why = headers["x-error-message"] ?? hint;
    return new LowbitError("io", `${url}: the server answered ${status}${why === undefined ? "" : `: ${why}`}`);
  };
  // Buckets that may not be listed answer 403 where nothing is; the hub says why where something is.
  const hidden = first.status === 403 && first.headers["x-error-message"] === undefined;
  if (first.status === 404 || hidden) return undefined;
  if (first.status === 416) return bytesFile(name, new Uint8Array());
  if (first.status === 200) {
    const length = Number(first.headers["content-length"] ?? Number.NaN);
    if (length > WHOLE) {
      throw new LowbitError(
        "io",
        `${url}: the server does not answer range requests, and the file has ${length} bytes, too many to hold`,
      );
    }
    const whole = await get(url, undefined, undefined, opening);
    if (whole.status !== 200) throw refused(whole);
    return bytesFile(name, whole.body);
  }
  if (first.status !== 206) throw refused(first);
  const size = Number(/\/(\d+)$/.exec(first.headers["content-range"] ?? "")?.[1] ?? Number.NaN);
  if (!Number.isSafeInteger(size)) throw new LowbitError("io", `${url}: the server does not say how long the file is`);
  const { etag, "last-modified": modified } = first.headers;
  // A weak tag may stay when bytes change, and servers ignore it in If-Range.
  const strong = etag !== undefined && !etag.startsWith("W/") ? etag : undefined;
  let block = { start: 0, bytes: first.body };
  const range = async (start: number, length: number, signal?: AbortSignal): Promise<Uint8Array> => {
    const answer = await get(url, `bytes=${start}-${start + length - 1}`, strong, signal);
    const other = (now: string | undefined, before: string | undefined) => ![now, before].includes(undefined) && now !== before;
    const [, from, total] = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(answer.headers["content-range"] ?? "") ?? [];
    const { etag: tag, "last-modified": date } = answer.headers;
    if (answer.status === 200 || (answer.status === 206 && (other(tag, etag) || other(date, modified) || other(total, String(size))))) {
      throw new LowbitError("changed", `${url}: the file changed while it was read`);
    }
    if (answer.status !== 206) throw refused(answer);
    if (other(from, String(start))) {
      throw new LowbitError("io", `${url}: expected bytes from offset ${start} but got some from ${from}`);
    }
    if (answer.body.length !== length) {
      throw new LowbitError(
        "io",
        `${url}: expected ${length} bytes at offset ${start} but got ${answer.body.length}`,
      );
    }
    return answer.body;
  };
  return {
    name,
    size,
    ...(strong !== undefined && { etag: strong }),
    read: async (offset, length, signal) => {
      const held = () => offset >= block.start && offset + length <= block.start + block.bytes.length;
      if (!held()) {
        if (length >= BLOCK) return range(offset, length, signal);
        block = { start: offset, bytes: await range(offset, Math.min(BLOCK, size - offset), signal) };
      }
      return block.bytes.subarray(offset - block.start, offset - block.start + length);
    },
  };
}

/** A folder behind a URL: a file is whatever is found at its name. */
export function urlFolder(url: string, get: Fetch, store?: Store): Folder {
  const base = new URL(url);
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  return {
    name: url,
    open: (file, signal) => {
      const place = new URL(base);
      place.pathname += encodeURIComponent(file);
      return find(file, place.href, get, signal, store);
    },
  };
}

/** A file behind a URL, from the store as far as it is there. */
function find(name: string, url: string, get: Fetch, signal?: AbortSignal, store?: Store): Promise<OpenFile | undefined> {
  const fresh = () => urlFile(name, url, get, signal);
  return store === undefined ? fresh() : openCached(name, url, store, fresh);
}

/** A single file behind a URL. */
export async function openUrlFile(url: string, get: Fetch, signal?: AbortSignal, store?: Store): Promise<OpenFile> {
  const file = await find(url, url, get, signal, store);
  if (file === undefined) throw new LowbitError("not_found", `${url}: there is no such file`);
  return file;
}
