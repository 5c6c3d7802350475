/** Files and folders behind URLs, read by ranges. */
import { openCached } from "./cache.js";
import { asLowbitError, LowbitError } from "./errors.js";
import { bytesFile, joined, partsOf } from "./folders.js";
import { HEAD, isPageType, pageIn } from "./pages.js";
import type { Folder, Missing, OpenFile, Store } from "./platform.js";
import type { RangeAnswer } from "./wire.js";

/** Makes one request. `range` and `ifRange` are the values of the headers of those names. */
export type Fetch = (url: string, range?: string, ifRange?: string, signal?: AbortSignal) => Promise<RangeAnswer>;

/** Requests by the thread's own `fetch`. */
export function fetchWith(headers: Record<string, string>, fetcher: typeof fetch = fetch): Fetch {
  const authorized = Object.keys(headers).some((name) => name.toLowerCase() === "authorization");
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
    for (const name of HEADERS) {
      const value = response.headers.get(name);
      if (value !== null) picked[name] = value;
    }
    const { status } = response;
    if (range === undefined ? status !== 200 : status !== 206) {
      // Nothing that is of use; where the server knows no ranges, everything, perhaps more than fits. Of a page, its start says whose.
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

/** The headers of answers that are read. */
const HEADERS = ["content-range", "content-length", "content-type", "etag", "last-modified", "x-error-code", "x-error-message"];

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

/** The start of a body, as far as it comes. */
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
    // What has come says enough.
  }
  await reader.cancel().catch(() => {});
  return joined(pieces);
}

/** Small reads are gathered: a request costs more than its bytes. */
const BLOCK = 1 << 18;

/** Files no larger than this are fetched whole where a server knows no ranges. */
const WHOLE = 64 << 20;
const TOO_LARGE = `the server does not answer range requests, and the file has more than ${WHOLE} bytes, too many to hold`;

/** What a server answered, and why as far as it is known. */
function answered({ status, headers, authorized }: RangeAnswer): string {
  const hint = authorized ? "it does not take the `authorization` in `headers`" : "a token goes into `headers`";
  // The Hugging Face hub says there why.
  const why = headers["x-error-message"] ?? (status === 401 ? hint : undefined);
  return `the server answered ${status}${why === undefined ? "" : `: ${why}`}`;
}

/** What an answer says of a file that is not there; `undefined` where it may be there, though the answer may be an error. */
function missing(file: string, answer: RangeAnswer): Missing | undefined {
  const { status, headers, body, authorized } = answer;
  if (status === 200 || status === 206) {
    const page = pageIn(file, headers["content-type"], body);
    return page === undefined ? undefined : { missing: true, why: `the server answered ${page}` };
  }
  const hub = headers["x-error-code"];
  const isSilent = headers["x-error-message"] === undefined;
  // The hub says this of a file, whatever the status. Of a repository or a revision that is not there it says so with 404.
  if (hub === "EntryNotFound" || (status === 404 && isSilent)) return { missing: true };
  if (status === 404 || status === 410) return { missing: true, why: answered(answer) };
  // Where the hub says why, something is there. Buckets that may not be listed answer 403 where nothing is.
  if (!isSilent || hub !== undefined) return undefined;
  if (status === 403) return { missing: true, why: answered(answer) };
  // And some servers 401. Not to a token, which they take or refuse: one that runs out must not make files go away. Whoever needs the
  // file is told of tokens.
  if (status === 401 && !authorized) return { missing: true, why: answered(answer), code: "io" };
  return undefined;
}

/** A file behind a URL, read by ranges. */
async function urlFile(
  name: string, url: string, get: Fetch, opening?: AbortSignal,
): Promise<(OpenFile & { etag?: string }) | Missing> {
  const first = await get(url, `bytes=0-${BLOCK - 1}`, undefined, opening);
  const refused = (answer: RangeAnswer) => new LowbitError("io", `${url}: ${answered(answer)}`);
  // Without ranges the first answer has no bytes, unless it is called a page.
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
  // A weak tag may stay when bytes change, and servers ignore it in If-Range.
  const strong = etag !== undefined && !etag.startsWith("W/") ? etag : undefined;
  let block = { start: 0, bytes: first.body };
  const range = async (start: number, length: number, signal?: AbortSignal): Promise<Uint8Array> => {
    const answer = await get(url, `bytes=${start}-${start + length - 1}`, strong, signal);
    const other = (now: string | undefined, before: string | undefined) => ![now, before].includes(undefined) && now !== before;
    const [, from, total] = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(answer.headers["content-range"] ?? "") ?? [];
    const { etag: tag, "last-modified": date } = answer.headers;
    // Not a new version of the file: whoever answers now, as a network that wants a log-in, is somebody else.
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

/** A folder behind a URL: a file is whatever is found at its name. */
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

/** A file behind a URL, from the store as far as it is there. */
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
