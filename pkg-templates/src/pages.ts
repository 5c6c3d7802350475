/**
 * Tells files from the web pages that servers send in their place: development servers and hosts of single-page apps answer requests
 * for what is not there with their index.html and 200, and networks that want a log-in first answer everything with theirs.
 */

/** How much of an answer is looked at. */
export const HEAD = 4096;

/**
 * What only a page begins with, after comments. A chat template may begin with `<s>` or `<|im_start|>`, so other tags say
 * nothing. A comment ends at its first `-->`: where it may end at later ones too, hostile bytes would be tried in every division.
 */
const BEGINS = /^\s*(?:<\?xml[^>]*>\s*)?(?:<!--(?:(?!-->)[^])*-->\s*)*<(?:!doctype\s+html|html|head|body)[\s>]/i;

/** Whether a content type is that of pages. */
export function isPageType(type: string | undefined): boolean {
  return /^\s*(?:text\/html|application\/xhtml\+xml)\s*(?:;|$)/i.test(type ?? "");
}

/**
 * What the server sent instead of the file, where that is a page; in words that follow "the server answered".
 *
 * `type` is the content type and `bytes` the answer, or its start. The type decides, because a page may begin with anything: a
 * script, a mere "Not Found". But servers call files pages too, a `.jinja` because it makes pages, whatever they know no type for
 * because that is what they assume. So bytes that can be no page's are those of a file: JSON and most templates begin with a
 * brace, weights and sentencepiece models hold bytes that no text has, and a template has its tags. Other text, as that of a licence,
 * cannot be told from a page that says little, and is left out.
 */
export function pageIn(file: string, type: string | undefined, bytes: Uint8Array): string | undefined {
  // A mark of the byte order is no part of the decoded text.
  const text = new TextDecoder().decode(bytes.subarray(0, HEAD));
  if (!BEGINS.test(text)) {
    const isTemplate = () => file.endsWith(".jinja") && /\{[{%#]/.test(text);
    if (!isPageType(type) || /^\s*[{[]|[\0-\x08]/.test(text) || isTemplate()) return undefined;
  }
  // The title tells a log-in from an app of one's own. It is the server's: in one line, and not much of it.
  const title = /<title[^>]*>([^<]*)/i.exec(text)?.[1]?.replace(/[\s\p{Cc}]+/gu, " ").trim();
  return `with a web page (HTML)${title ? ` titled ${JSON.stringify(title.slice(0, 60))}` : ""} in place of the file`;
}
