// The weights of one matrix: the original's, read from its own files, and the quantized model's, dequantized by the
// package. Only that matrix is kept in memory.
import { dequantize } from "../lowbit.js";

const WIDTH = { F32: 4, F16: 2, BF16: 2 };

/** Both distributions over the same bins, as shares of the weights: `{largest, width, original, quantized}`. */
export async function distributions(model, run, module) {
  run.weights ??= new Map();
  const known = run.weights.get(module);
  if (known !== undefined) return known;
  const name = `${module}.weight`;
  const before = await originalTensor(model, name);
  const after = await quantizedTensor(run, name);
  const found = bins(before, after);
  run.weights.set(module, found);
  return found;
}

async function originalTensor({ checkpoint, read }, name) {
  const { layout, files } = checkpoint.info;
  if (layout !== "dense") throw new Error(`the histogram requires a floating-point safetensors checkpoint but found ${layout}`);
  for (const file of files) {
    const start = 8 + Number(new DataView((await read(file, 0, 8)).slice().buffer).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(await read(file, 8, start)));
    const entry = header[name];
    if (entry === undefined) continue;
    const [from, to] = entry.data_offsets;
    return decode(entry.dtype, await read(file, start + from, start + to), name);
  }
  throw new Error(`${name} is in none of ${files.join(", ")}`);
}

async function quantizedTensor(run, name) {
  let tensor;
  await dequantize(run.output, { dtype: "f32", target: () => tensorWriter(name, (found) => (tensor = found)) });
  if (tensor === undefined) throw new Error(`${name} is missing from the dequantized weights`);
  return tensor;
}

/** A writer that reads a safetensors file front to back and keeps one tensor. It ignores other files. */
export function tensorWriter(name, found) {
  let at = 0;
  let head = new Uint8Array(0);
  let body;
  const need = () => (head.length < 8 ? 8 : 8 + Number(new DataView(head.buffer).getBigUint64(0, true)));
  // Other files begin with "{", which reads as an absurdly large header length.
  let other = false;
  const readHeader = () => {
    const header = JSON.parse(new TextDecoder().decode(head.subarray(8)));
    const entry = header[name];
    if (entry === undefined) other = true;
    else body = { dtype: entry.dtype, start: head.length + entry.data_offsets[0], bytes: new Uint8Array(entry.data_offsets[1] - entry.data_offsets[0]), got: 0 };
  };
  return {
    write(chunk) {
      let rest = chunk;
      while (!other && body === undefined && rest.length > 0) {
        const part = rest.subarray(0, need() - head.length);
        const longer = new Uint8Array(head.length + part.length);
        longer.set(head);
        longer.set(part, head.length);
        head = longer;
        at += part.length;
        rest = rest.subarray(part.length);
        if (head.length >= 8 && need() > 1e8) other = true;
        else if (head.length > 8 && head.length === need()) readHeader();
      }
      if (body !== undefined) {
        const from = Math.max(body.start - at, 0);
        const to = Math.min(body.start + body.bytes.length - at, rest.length);
        if (to > from) {
          body.bytes.set(rest.subarray(from, to), at + from - body.start);
          body.got += to - from;
        }
      }
      at += rest.length;
    },
    close() {
      if (body !== undefined && body.got === body.bytes.length) found(decode(body.dtype, body.bytes, name));
    },
    abort() {},
  };
}

/** Converts little-endian floats of a safetensors file to a Float32Array. */
export function decode(dtype, bytes, name) {
  const width = WIDTH[dtype];
  if (width === undefined) throw new Error(`${name}: expected F32, F16 or BF16 but found ${dtype}`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const values = new Float32Array(bytes.byteLength / width);
  const bits = new Uint32Array(1);
  const float = new Float32Array(bits.buffer);
  for (let at = 0; at < values.length; at += 1) {
    if (dtype === "F32") values[at] = view.getFloat32(at * 4, true);
    else if (dtype === "F16") values[at] = half(view.getUint16(at * 2, true));
    else {
      bits[0] = view.getUint16(at * 2, true) << 16;
      values[at] = float[0];
    }
  }
  return values;
}

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction === 0 ? sign * Infinity : Number.NaN;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

const BINS = 81;

/** Shares of both lists in equal bins. Zero is at the centre of the middle bin. */
export function bins(before, after) {
  let largest = 0;
  for (const values of [before, after]) for (const value of values) largest = Math.max(largest, Math.abs(value));
  const width = (2 * largest) / BINS || 1;
  const shares = (values) => {
    const counts = new Float64Array(BINS);
    for (const value of values) counts[Math.min(BINS - 1, Math.floor((value + largest) / width))] += 1 / values.length;
    return [...counts];
  };
  return { largest, width, original: shares(before), quantized: shares(after) };
}
