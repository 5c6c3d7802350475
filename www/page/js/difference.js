// Finds where two continuations diverge. Does not touch the DOM.

/** The first index where two lists of token ids differ; null if they are equal. */
export function firstDifference(a, b) {
  const shorter = Math.min(a.length, b.length);
  for (let at = 0; at < shorter; at += 1) if (a[at] !== b[at]) return at;
  return a.length === b.length ? null : shorter;
}

/** How many UTF-16 units two texts share at their start, without splitting a surrogate pair. */
export function commonStart(a, b) {
  const shorter = Math.min(a.length, b.length);
  let at = 0;
  while (at < shorter && a[at] === b[at]) at += 1;
  const cut = at > 0 && at < Math.max(a.length, b.length) && /[\uD800-\uDBFF]/.test(a[at - 1]);
  return cut ? at - 1 : at;
}
