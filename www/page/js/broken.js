// Where a text begins to fail, by what the validation found in it. Nothing here touches the page.

/** How many UTF-16 units of `text` come before what `detail` speaks of; undefined where it names no place. */
export function breaksAt({ kind, detail, text }) {
  if (kind === "repetition_loop") return loopStart(detail, text);
  if (kind === "non_finite_logits") return text.length;
  if (kind !== "degenerate_text") return undefined;
  if (/replacement marks/.test(detail)) return found(text.search(/[\uFFFD\p{Co}]|(?![\n\r\t])\p{Cc}/u));
  if (/characters are a run of/.test(detail)) return longestRun(text);
  if (/visible characters are letters/.test(detail)) return 0;
  return undefined;
}

/** More empty lines than this are not shown as such. */
const LINES = 3;

/** A text in which one sees what otherwise would leave a hole: control characters, and many ends of lines. */
export function seen(text) {
  return text
    .replace(/\n+/g, (lines) => (lines.length > LINES ? `↵×${lines.length} ` : lines))
    .replace(/(?![\n\r\t])[\0-\x1f]/g, (control) => String.fromCharCode(0x2400 + control.charCodeAt(0)));
}

const found = (at) => (at < 0 ? undefined : at);

/** Texts that share this part of what their tokens share are taken for the same loop: tokens differ in length. */
const SAME_LOOP = 0.5;

/**
 * The detector counts tokens; here is only their text. The same loop is there the shortest cycle of characters at the end with as
 * many rounds, over a like share of the text: an "!!!" at the end of each round is a shorter cycle, but no part of the text.
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
    // The text before the loop can end as each round does, as with ". ": that is no part of it.
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
