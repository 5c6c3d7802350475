// Formats numbers for people.

const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** 705,408 */
export const count = (value) => plain.format(value);

/** Three significant digits, without an exponent where that reads well. */
export function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-4)) return value.toExponential(2);
  if (size >= 100) return plain.format(value);
  return String(Number(value.toPrecision(3)));
}

/** Three decimals below 100, because perplexities differ in the third digit. */
export function perplexity(value) {
  if (value === null || value === undefined) return "not a number";
  return value < 100 ? value.toFixed(3) : value < 1e6 ? plain.format(value) : value.toExponential(2);
}

/** Decimal units (a megabyte is 10^6 bytes), as in the library's own figures. */
export function bytes(value) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toPrecision(3)} ${units[unit]}`;
}

/** 705 thousand, 1.24 billion */
export function parameters(value) {
  const units = [[1e9, "billion"], [1e6, "million"], [1e3, "thousand"]];
  const [size, name] = units.find(([size]) => value >= size) ?? [1, ""];
  return `${Number((value / size).toPrecision(3))} ${name}`.trim();
}

export const percent = (share, digits = 2) => `${(share * 100).toFixed(digits)} %`;

/** A change with its sign: +0.75 % */
export function change(share) {
  if (share === null || share === undefined) return "–";
  const size = Math.abs(share);
  return `${share < 0 ? "−" : "+"}${size < 1 ? percent(size) : `${plain.format(size * 100)} %`}`;
}

export function seconds(value) {
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 90) return `${Math.round(value)} s`;
  return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

/** `int4-g32-sym` in words. */
export function scheme(name) {
  const found = /^int(\d)-(?:g(\d+)|(channel|tensor))-(sym|asym)$/.exec(name);
  if (found === null) return name.replace(/^ternary-(\w+)$/, "ternary, one scale per $1");
  const scales = found[2] ? `groups of ${found[2]}` : found[3] === "channel" ? "one scale per row" : "one scale";
  return `INT${found[1]}, ${scales}${found[4] === "asym" ? ", zero points" : ""}`;
}
