// Splits a checkpoint's weights into two shards. Does not need the package.

/** A checkpoint's files with the weights in two shards. In the index, the shards' names start with `folder`. */
export function inShards({ "model.safetensors": whole, ...rest }, folder = "") {
  const length = Number(new DataView(whole.buffer, whole.byteOffset).getBigUint64(0, true));
  const { __metadata__: _, ...tensors } = JSON.parse(Buffer.from(whole.subarray(8, 8 + length)));
  const names = Object.keys(tensors);
  const half = names.length >> 1;
  const shards = {};
  const weight_map = {};
  for (const [index, part] of [names.slice(0, half), names.slice(half)].entries()) {
    const file = `${folder}model-0000${index + 1}-of-00002.safetensors`;
    const header = {};
    const pieces = [];
    let at = 0;
    for (const name of part) {
      const { data_offsets: [from, to], ...of } = tensors[name];
      header[name] = { ...of, data_offsets: [at, (at += to - from)] };
      pieces.push(whole.subarray(8 + length + from, 8 + length + to));
      weight_map[name] = file;
    }
    const json = JSON.stringify(header);
    const start = Buffer.from(json.padEnd(Math.ceil(json.length / 8) * 8));
    const size = Buffer.alloc(8);
    size.writeBigUInt64LE(BigInt(start.length));
    shards[file] = new Uint8Array(Buffer.concat([size, start, ...pieces]));
  }
  return { ...rest, ...shards, "model.safetensors.index.json": new Uint8Array(Buffer.from(JSON.stringify({ weight_map }))) };
}
