// Shards in a subfolder of the checkpoint, for every kind of source.
import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { after, describe, test } from "node:test";
import { sendRange, serve } from "./http.mjs";
import { inShards } from "./shards.mjs";
import { at, fails, lowbit, MODEL, modelFiles, sha256, temporary } from "./support.mjs";

const engine = lowbit.createEngine({ worker: false });
after(() => engine.dispose());

const FOLDER = "weights/two words/";
const plain = modelFiles();
const files = inShards(plain, FOLDER);

/** The digest of the quantized weights, which depends on every weight. */
async function written(checkpoint) {
  const output = await engine.quantize(checkpoint, { bits: 8 });
  const digest = sha256((await output.files())["model.safetensors"]);
  output.dispose();
  return digest;
}

/** A directory handle in memory. */
function handle(files, name) {
  const missing = () => {
    throw new DOMException("no such entry", "NotFoundError");
  };
  return {
    kind: "directory", name,
    getFileHandle: async (file) => (Object.hasOwn(files, file) ? { getFile: async () => new File([files[file]], file) } : missing()),
    getDirectoryHandle: async (folder) => {
      const inside = Object.entries(files).filter(([file]) => file.startsWith(`${folder}/`));
      return inside.length === 0 ? missing() : handle(Object.fromEntries(inside.map(([file, bytes]) => [file.slice(folder.length + 1), bytes])), folder);
    },
  };
}

const chosen = (files) =>
  Object.entries(files).map(([name, bytes]) => Object.defineProperty(new File([bytes], name.split("/").pop()), "webkitRelativePath", { value: `tale/${name}` }));

const sources = {
  "a path": (files) => {
    const root = temporary();
    for (const [name, bytes] of Object.entries(files)) {
      mkdirSync(dirname(join(root, name)), { recursive: true });
      writeFileSync(join(root, name), bytes);
    }
    return root;
  },
  "a URL": async (files) => {
    const url = await serve((request, response) => {
      // The server does not take `%2F` for `/`.
      const name = request.url.slice(1).split("/").map(decodeURIComponent).map((part) => part.replaceAll("/", "?")).join("/");
      return Object.hasOwn(files, name) ? sendRange(request, response, Buffer.from(files[name])) : response.writeHead(404).end();
    });
    return `${url}/`;
  },
  "a directory handle": (files) => handle(files, "tale"),
  "files by name": (files) => files,
  "the files of a folder": chosen,
};

for (const [name, source] of Object.entries(sources)) {
  describe(`shards in a subfolder of ${name}`, () => {
    test("give the same weights", async () => {
      const wanted = await written(await engine.openCheckpoint(MODEL));
      const checkpoint = await engine.openCheckpoint(await source(files));
      assert.deepEqual(checkpoint.info.files.filter((file) => file.includes("/")).length, 2, String(checkpoint.info.files));
      assert.equal(await written(checkpoint), wanted);
    });

    test("are named in the error if one is missing", async () => {
      const { [`${FOLDER}model-00002-of-00002.safetensors`]: gone, ...rest } = files;
      await fails(engine.openCheckpoint(await source(rest)), "invalid_checkpoint", /weights\/two words\/model-00002-of-00002\.safetensors/);
    });

    test("are not read from outside the folder", async () => {
      for (const folder of ["../", "weights/../../", "/", "./", "weights//", "..\\", "C:", "C:/", "http://127.0.0.1/", "weights/./"]) {
        const index = inShards(plain, folder)["model.safetensors.index.json"];
        await at(folder, async () => fails(engine.openCheckpoint(await source({ ...files, "model.safetensors.index.json": index })), "invalid_checkpoint"));
      }
    });
  });
}
