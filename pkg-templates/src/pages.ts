/**
 * Recognizes web pages that servers send instead of files. Development servers and hosts of single-page apps answer
 * requests for missing files with index.html and status 200. Networks with a log-in answer every request with their
 * log-in page.
 */

/** Bytes of an answer that are examined. */
export const HEAD = 4096;

/**
 * Tags that only a page begins with, after comments. Other tags prove nothing: a chat template may begin with `<s>` or
 * `<|im_start|>`. A comment must end at its first `-->`. Otherwise hostile bytes would cause exponential backtracking.
 */
const BEGINS = /^\s*(?:<\?xml[^>]*>\s*)?(?:<!--(?:(?!-->)[^])*-->\s*)*<(?:!doctype\s+html|html|head|body)[\s>]/i;

/** Whether a content type is HTML or XHTML. */
export function isPageType(type: string | undefined): boolean {
  return /^\s*(?:text\/html|application\/xhtml\+xml)\s*(?:;|$)/i.test(type ?? "");
}

/**
 * Describes the page that the server sent instead of the file, in words that follow "the server answered"; `undefined`
 * for a file.
 *
 * `type` is the content type, and `bytes` the answer or its start. The rules:
 *
 * 1. Bytes with a page's first tags are a page, whatever the type.
 * 2. Otherwise a page needs the type, because a page may begin with anything, such as a script or "Not Found".
 * 3. Servers give files that type too: a `.jinja` because templates make pages, others because it is their default. So
 *    these are files whatever the type: JSON and templates that begin with a brace, bytes that text lacks (weights and
 *    sentencepiece models), and `.jinja` files with template tags.
 * 4. Other text with that type, such as a licence, counts as a page: nothing distinguishes it from a short page.
 */
export function pageIn(file: string, type: string | undefined, bytes: Uint8Array): string | undefined {
  // The decoded text has no byte order mark.
  const text = new TextDecoder().decode(bytes.subarray(0, HEAD));
  if (!BEGINS.test(text)) {
    const isTemplate = () => file.endsWith(".jinja") && /\{[{%#]/.test(text);
    if (!isPageType(type) || /^\s*[{[]|[\0-\x08]/.test(text) || isTemplate()) return undefined;
  }
  // The title distinguishes a log-in page from the user's own app. It is untrusted, so it is shortened to one line.
  const title = /<title[^>]*>([^<]*)/i.exec(text)?.[1]?.replace(/[\s\p{Cc}]+/gu, " ").trim();
  return `with a web page (HTML)${title ? ` titled ${JSON.stringify(title.slice(0, 60))}` : ""} in place of the file`;
}
