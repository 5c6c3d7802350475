/** Files and folders behind URLs, read by range requests. */
import { openCached } from "./cache.js";
import { asLowbitError, LowbitError } from "./errors.js";
import { bytesFile, joined, partsOf } from "./folders.js";
import { HEAD, isPageType, pageIn } from "./pages.js";
import type { Folder, Missing, OpenFile, Store } from "./platform.js";
import type { RangeAnswer } from "./wire.js";

/** Makes a request. `range` and `ifRange` are values of the headers `Range` and `If-Range`. */
export type Fetch = (url: string, range?: string, ifRange?: string, signal?: AbortSignal) => Promise<RangeAnswer>;

/** Requests with fixed headers, by the thread's own `fetch` or another one. */
export function fetchWith(headers: Record<string, string>, fetcher: typeof fetch = fetch): Fetch {
  const authorized = Object.keys(headers).some((name) => name.toLowerCase() === "authorization");
  return async (url, range, ifRange, signal) => {
    const asked: Record<string, string> = { ...headers };
    if (range !== undefined) asked["range"] = range;
    if (ifRange !== undefined) asked["if-range"] = ifRange;
    let response: Response;
    try {
      // A range of a compressed body would be wrong. Browsers ask for `identity` encoding with ranges by themselves.
      response = await fetcher(url, { headers: asked, signal });
    } catch (error) {
      throw new LowbitError("io", `${url}: ${reason(error)}`, { cause: error });
    }
    if (typeof response?.status !== "number" || typeof response.headers?.get !== "function") {
      throw new LowbitError("invalid_argument", `${url}: expected \`fetch\` to give a Response but found something else`);
    }
    const picked: Record<string, string> = {};
    for (const name of HEADERS) {
      const value = response.headers.get(name);
      if (value !== null) picked[name] = value;
    }
    const { status } = response;
    if (range === undefined ? status !== 200 : status !== 206) {
      // An error, or the whole file from a server without ranges, perhaps larger than memory. Only a page's start is
      // useful: it shows whose page it is.
      const body = status === 200 && isPageType(picked["content-type"]) ? await startOf(response) : new Uint8Array();
      await response.body?.cancel?.().catch(() => {});
      return { status, headers: picked, body, authorized };
    }
    let body: Uint8Array | undefined;
    try {
      body = await bodyOf(response, range === undefined ? WHOLE : lengthOf(range));
    } catch (error) {
      throw new LowbitError("io", `${url}: the download broke off: ${reason(error)}`, { cause: error });
    }
    if (body !== undefined) return { status, headers: picked, body, authorized };
    throw new LowbitError("io", `${url}: ${range === undefined ? TOO_LARGE : "the server sent more than was asked for"}`);
  };
}

/** The response headers that are used. */
const HEADERS = ["content-range", "content-length", "content-type", "etag", "last-modified", "x-error-code", "x-error-message"];

/** Why a request failed. Node's `fetch` gives the reason in `cause`. */
function reason(error: unknown): string {
  const { message } = asLowbitError(error);
  const cause = (error as { cause?: { message?: unknown } } | null | undefined)?.cause?.message;
  return typeof cause === "string" && cause !== "" ? `${message}: ${cause}` : message;
}

/** The number of bytes in `bytes=FIRST-LAST`. */
function lengthOf(range: string): number {
  const [first, last] = range.slice("bytes=".length).split("-");
  return Number(last) - Number(first) + 1;
}

/** The body; `undefined` if it has more than `most` bytes. */
async function bodyOf(response: Response, most: number): Promise<Uint8Array | undefined> {
  // A caller's `fetch` may give no stream.
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

/** The start of a body: about `HEAD` bytes, or what arrives before a failure. */
async function startOf(response: Response): Promise<Uint8Array> {
  if (typeof response.body?.getReader !== "function") return new Uint8Array();
  const reader = response.body.getReader();
  const pieces: Uint8Array[] = [];
  try {
    for (let length = 0; length < HEAD; ) {
      const { done, value } = await reader.read();
      if (done) break;
      pieces.push(value);
      length += value.length;
    }
  } catch {
    // The received part is enough.
  }
  await reader.cancel().catch(() => {});
  return joined(pieces);
}

/** Minimal bytes of a request. Small reads share one, because a request costs more than its bytes. */
const BLOCK = 1 << 18;

/** Maximal bytes of a file that is fetched whole, from a server without range requests. */
const WHOLE = 64 << 20;
const TOO_LARGE = `the server does not answer range requests, and the file has more than ${WHOLE} bytes, too many to hold`;

/** Describes a server's answer, with its reason if known. */
function answered({ status, headers, authorized }: RangeAnswer): string {
  const hint = authorized ? "it does not take the `authorization` in `headers`" : "a token goes into `headers`";
  // The Hugging Face hub gives its reason in this header.
  const why = headers["x-error-message"] ?? (status === 401 ? hint : undefined);
  return `the server answered ${status}${why === undefined ? "" : `: ${why}`}`;
}

/**
 * Whether an answer means that the file is missing; `undefined` if the file may exist. The answer may then be another
 * error.
 */
function missing(file: string, answer: RangeAnswer): Missing | undefined {
  const { status, headers, body, authorized } = answer;
  if (status === 200 || status === 206) {
    const page = pageIn(file, headers["content-type"], body);
    return page === undefined ? undefined : { missing: true, why: `the server answered ${page}` };
  }
  const hub = headers["x-error-code"];
  const isSilent = headers["x-error-message"] === undefined;
  // The hub's code for a missing file, at any status. For a missing repository or revision, it answers 404 with a
  // message.
  if (hub === "EntryNotFound" || (status === 404 && isSilent)) return { missing: true };
  if (status === 404 || status === 410) return { missing: true, why: answered(answer) };
  // If the hub gives a reason, the file may exist. Storage buckets that cannot be listed answer 403 for missing files.
  if (!isSilent || hub !== undefined) return undefined;
  if (status === 403) return { missing: true, why: answered(answer) };
  // Some servers answer 401 for missing files. With a token, 401 means that the token was refused: an expired one must
  // not make files disappear. The error about a needed file mentions tokens.
  if (status === 401 && !authorized) return { missing: true, why: answered(answer), code: "io" };
  return undefined;
}

/** A file behind a URL, read by range requests. */
async function urlFile(
  name: string, url: string, get: Fetch, opening?: AbortSignal,
): Promise<(OpenFile & { etag?: string }) | Missing> {
  const first = await get(url, `bytes=0-${BLOCK - 1}`, undefined, opening);
  const refused = (answer: RangeAnswer) => new LowbitError("io", `${url}: ${answered(answer)}`);
  // From a server without ranges the first answer has no bytes, unless its type is HTML.
  const absent = missing(name, first);
  if (absent !== undefined) return absent;
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
    return missing(name, whole) ?? bytesFile(name, whole.body);
  }
  if (first.status !== 206) throw refused(first);
  const size = Number(/\/(\d+)$/.exec(first.headers["content-range"] ?? "")?.[1] ?? Number.NaN);
  if (!Number.isSafeInteger(size)) throw new LowbitError("io", `${url}: the server does not say how long the file is`);
  const { etag, "last-modified": modified } = first.headers;
  // A weak ETag may stay the same when bytes change, and servers ignore it in If-Range.
  const strong = etag !== undefined && !etag.startsWith("W/") ? etag : undefined;
  let block = { start: 0, bytes: first.body };
  const range = async (start: number, length: number, signal?: AbortSignal): Promise<Uint8Array> => {
    const answer = await get(url, `bytes=${start}-${start + length - 1}`, strong, signal);
    const other = (now: string | undefined, before: string | undefined) => ![now, before].includes(undefined) && now !== before;
    const [, from, total] = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(answer.headers["content-range"] ?? "") ?? [];
    const { etag: tag, "last-modified": date } = answer.headers;
    // A page here is not a new version of the file, but another server's answer, such as a network's log-in page.
    const page = answer.status === 200 ? missing(name, answer)?.why : undefined;
    if (page !== undefined) throw new LowbitError("io", `${url}: ${page}`);
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

/** A folder behind a URL. Files are found by appending their names. */
export function urlFolder(url: string, get: Fetch, store?: Store): Folder {
  const base = new URL(url);
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  const absent = new Map<string, Missing>();
  return {
    name: url,
    missing: absent,
    open: async (file, signal) => {
      const place = new URL(base);
      place.pathname += partsOf(file).map(encodeURIComponent).join("/");
      const found = await find(file, place.href, get, signal, store);
      absent.delete(file);
      if (!("missing" in found)) return found;
      if (found.why !== undefined) absent.set(file, found);
      return undefined;
    },
  };
}

/** A file behind a URL, from the store where cached. */
function find(name: string, url: string, get: Fetch, signal?: AbortSignal, store?: Store): Promise<OpenFile | Missing> {
  const fresh = () => urlFile(name, url, get, signal);
  return store === undefined ? fresh() : openCached(name, url, store, fresh);
}

/** A single file behind a URL. */
export async function openUrlFile(url: string, get: Fetch, signal?: AbortSignal, store?: Store): Promise<OpenFile> {
  const file = await find(url, url, get, signal, store);
  if (!("missing" in file)) return file;
  throw new LowbitError(file.code ?? "not_found", `${url}: ${file.why ?? "there is no such file"}`);
}
