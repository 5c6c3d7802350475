// Reads uncompressed zips from their central directory. The page writes zips with a library; this reader is independent
// of it, so a bug in the library cannot hide itself.

const [END, ENTRY] = [0x06054b50, 0x02014b50];

/** The zip's files by their paths. */
export function unzipSync(bytes) {
  const end = bytes.lastIndexOf(Buffer.from("PK\x05\x06", "latin1"));
  if (end < 0 || bytes.readUInt32LE(end) !== END) throw new Error("expected an end of central directory record but found none");
  const count = bytes.readUInt16LE(end + 10);
  let at = bytes.readUInt32LE(end + 16);
  const files = {};
  for (let entry = 0; entry < count; entry += 1) {
    if (bytes.readUInt32LE(at) !== ENTRY) throw new Error(`expected an entry at ${at}`);
    const [method, size, length] = [bytes.readUInt16LE(at + 10), bytes.readUInt32LE(at + 20), bytes.readUInt32LE(at + 24)];
    const [name, extra, comment] = [28, 30, 32].map((field) => bytes.readUInt16LE(at + field));
    const path = bytes.toString("utf8", at + 46, at + 46 + name);
    if (method !== 0 || size !== length) throw new Error(`${path}: expected a stored file but found method ${method}`);
    const local = bytes.readUInt32LE(at + 42);
    const start = local + 30 + bytes.readUInt16LE(local + 26) + bytes.readUInt16LE(local + 28);
    files[path] = bytes.subarray(start, start + length);
    at += 46 + name + extra + comment;
  }
  return files;
}
