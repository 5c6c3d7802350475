// Finds where a generated text starts to fail, from the validation's failure record. Does not touch the DOM.

/** UTF-16 offset in `text` where the failure in `detail` starts; undefined if `detail` gives no position. */
export function breaksAt({ kind, detail, text }) {
  if (kind === "repetition_loop") return loopStart(detail, text);
  if (kind === "non_finite_logits") return text.length;
  if (kind !== "degenerate_text") return undefined;
  if (/replacement marks/.test(detail)) return found(text.search(/[\uFFFD\p{Co}]|(?![\n\r\t])\p{Cc}/u));
  if (/characters are a run of/.test(detail)) return longestRun(text);
  if (/visible characters are letters/.test(detail)) return 0;
  return undefined;
}

/** Longer runs of newlines are shown as a count. */
const LINES = 3;

/** Makes control characters and long runs of newlines visible. */
export function seen(text) {
  return text
    .replace(/\n+/g, (lines) => (lines.length > LINES ? `↵×${lines.length} ` : lines))
    .replace(/(?![\n\r\t])[\0-\x1f]/g, (control) => String.fromCharCode(0x2400 + control.charCodeAt(0)));
}

const found = (at) => (at < 0 ? undefined : at);

/** The loop covers at least this part of the looping tokens' share, because tokens differ in length. */
const SAME_LOOP = 0.5;

/**
 * Where the loop starts. The detector counts tokens, but only their text is known here. The loop is the shortest cycle
 * of characters at the end of the text that has as many rounds and covers a similar share of the text. The share rules
 * out shorter cycles, such as an "!!!" at the end of each round.
 */
function loopStart(detail, text) {
  const [, looping, total, cycle] = (/the last (\d+) of (\d+) tokens repeat a cycle of (\d+) tokens/.exec(detail) ?? []).map(Number);
  if (cycle === undefined) return undefined;
  const rounds = Math.floor(looping / cycle);
  const least = SAME_LOOP * (looping / total) * text.length;
  for (let period = 1; period * rounds <= text.length; period += 1) {
    let start = text.length - period;
    while (start > 0 && text[start - 1] === text[start - 1 + period]) start -= 1;
    const length = text.length - start;
    const more = length - period * rounds;
    if (more < 0 || length < least) continue;
    // The text before the loop may end like each round, for example with ". ". Those characters are not in the loop.
    const looksAlike = looping % cycle === 0 ? more : /^[^\p{L}\p{N}]*/u.exec(text.slice(start))[0].length;
    return start + Math.min(more, looksAlike);
  }
  return undefined;
}

function longestRun(text) {
  let [best, bestAt] = [0, 0];
  for (const { 0: run, index } of text.matchAll(/(.)\1*/gsu)) if (run.length > best) [best, bestAt] = [run.length, index];
  return bestAt;
}
