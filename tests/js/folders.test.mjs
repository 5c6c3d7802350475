// Folders as sources: every kind opens files in itself and its subfolders, and nothing outside. The engine already
// rejects names that lead outside, so this tests the package's modules directly.
import assert from "node:assert/strict";
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { pathToFileURL } from "node:url";
import { serve } from "./http.mjs";
import { fails, lowbit, temporary } from "./support.mjs";

const SOURCES = new URL("../../pkg-templates/src/", import.meta.url);

/** The package's source modules, bundled with esbuild; `undefined` if esbuild is not installed. */
async function modules() {
  let esbuild;
  try {
    esbuild = await import(new URL("../node_modules/esbuild/lib/main.js", SOURCES));
  } catch {
    return undefined;
  }
  const outfile = join(temporary(), "folders.mjs");
  const contents = ["folders", "node-host", "pages", "specs", "urls"].map((name) => `export * from "./${name}.js";`).join("\n");
  await esbuild.build({
    stdin: { contents, resolveDir: SOURCES.pathname }, outfile, bundle: true, format: "esm", platform: "node", logLevel: "error",
  });
  return import(pathToFileURL(outfile));
}

const package_ = await modules();
const options = package_ === undefined ? { skip: "skipped: the package's esbuild is not installed" } : {};

/** Files in a folder, and the content of a file beside the folder. */
const INSIDE = { "config.json": "upper", "weights/one.safetensors": "lower", "weights/more/two words.bin": "lowest", "..hidden": "hidden", "a%2Fb": "percent", "#?&": "signs" };
const SECRET = "outside";

const missing = (name) => {
  throw new DOMException("no such entry", name);
};

/** A directory handle in memory that checks no names: it follows `..` and slashes. */
function handle(files, path = "folder") {
  const at = (name) => join(path, name);
  const isFolder = (place) => Object.keys(files).some((file) => file.startsWith(`${place}/`));
  return {
    kind: "directory", name: path,
    getFileHandle: async (name) =>
      at(name) in files ? { getFile: async () => new File([files[at(name)]], name) } : missing(isFolder(at(name)) ? "TypeMismatchError" : "NotFoundError"),
    getDirectoryHandle: async (name) => (isFolder(at(name)) ? handle(files, at(name)) : missing(at(name) in files ? "TypeMismatchError" : "NotFoundError")),
  };
}

const kinds = {
  "a path": async () => {
    const root = temporary();
    for (const [name, text] of Object.entries(INSIDE)) {
      mkdirSync(join(root, "folder", name, ".."), { recursive: true });
      writeFileSync(join(root, "folder", name), text);
    }
    writeFileSync(join(root, "secret"), SECRET);
    const { folder } = await package_.platform.openPath(join(root, "folder"));
    return folder;
  },
  "a URL": async () => {
    const asked = [];
    const url = await serve((request, response) => {
      asked.push(request.url);
      const name = decodeURIComponent(request.url.replace("/deep/folder/", ""));
      // Every path outside the folder exists.
      const text = !request.url.startsWith("/deep/folder/") ? SECRET : Object.hasOwn(INSIDE, name) ? INSIDE[name] : undefined;
      return text === undefined ? response.writeHead(404).end() : response.writeHead(200).end(text);
    });
    return { ...package_.urlFolder(`${url}/deep/folder`, package_.fetchWith({})), asked };
  },
  "a directory handle": async () => {
    const files = Object.fromEntries(Object.entries(INSIDE).map(([name, text]) => [`folder/${name}`, text]));
    return package_.directoryFolder(handle({ ...files, secret: SECRET }));
  },
  "a record of files": async () => filesFolder(INSIDE),
  "a list of files": async () => {
    const list = Object.entries(INSIDE).map(([name, text]) => Object.defineProperty(new File([text], name.split("/").pop()), "webkitRelativePath", { value: `folder/${name}` }));
    const { files } = sourceSpec(list);
    return package_.filesFolder("files", files);
  },
};

const sourceSpec = (source) => package_.sourceSpec(source, {}, { isPath: package_.isPath }, { apart: true });
const filesFolder = (texts) => {
  const { files } = sourceSpec(Object.fromEntries(Object.entries(texts).map(([name, text]) => [name, new Blob([text])])));
  return package_.filesFolder("files", files);
};

/** Names that lead out of a folder on some system: Unix, Windows, URLs, or unchecked handles. */
const OUT = [
  "../secret", "weights/../../secret", "..", ".", "", "/", "//secret", "/secret", "weights//one.safetensors", "weights/", "./config.json", "weights/./one.safetensors",
  "..\\secret", "weights\\one.safetensors", "C:secret", "C:/secret", "c:\\secret", "http://127.0.0.1/secret", ".. /secret", "... /secret", "weights/ ../secret", " ",
  "a\0b", "a\nb", "a\u0085b", "\\\\server\\share", "config.json:stream",
];

/** Names of files that do not exist, some of which look as if they led out. */
const NOWHERE = ["%2e%2e/secret", "%2e%2e%2fsecret", "weights%2fone.safetensors", "..%5csecret", "weights", "config.json/x", "config.json/x/y", "more", "__proto__", "constructor", "?x", "config.json?", "config.json#"];

const textOf = async (file) => Buffer.from(await file.read(0, file.size)).toString();

for (const [name, make] of Object.entries(kinds)) {
  describe(`${name} as a folder`, options, () => {
    test("opens files in it and in its subfolders", async () => {
      const folder = await make();
      for (const [file, text] of Object.entries(INSIDE)) assert.equal(await textOf(await folder.open(file)), text, file);
    });

    test("opens nothing outside it", async () => {
      const folder = await make();
      const before = folder.asked?.length;
      for (const file of OUT) {
        // Given files are only looked up by name, so a lookup may also find nothing.
        const opened = await folder.open(file).then((found) => found, (error) => assert.match(error.message, /inside the folder/));
        assert.equal(opened, undefined, JSON.stringify(file));
      }
      assert.equal(folder.asked?.length, before, "there was no request");
      for (const file of NOWHERE) {
        let found;
        try {
          found = await folder.open(file);
        } catch (error) {
          assert.match(error.message, /expected a file/, file);
        }
        assert.equal(found, undefined, JSON.stringify(file));
      }
      assert.ok((folder.asked ?? []).every((path) => path.startsWith("/deep/folder/")), String(folder.asked));
    });
  });
}

test("a path, a URL and a directory handle reject names that lead out of the folder", options, async () => {
  for (const kind of ["a path", "a URL", "a directory handle"]) {
    const folder = await kinds[kind]();
    for (const file of OUT) await assert.rejects(folder.open(file), { code: "invalid_argument" }, `${kind}: ${JSON.stringify(file)}`);
  }
});

test("symbolic links in a folder are followed, as in the hub's cache", options, async () => {
  const root = temporary();
  mkdirSync(join(root, "blobs"));
  mkdirSync(join(root, "folder"));
  writeFileSync(join(root, "blobs/abc"), "bytes");
  symlinkSync("../blobs/abc", join(root, "folder/model.safetensors"));
  const { folder } = await package_.platform.openPath(join(root, "folder"));
  assert.equal(await textOf(await folder.open("model.safetensors")), "bytes");
});

describe("from a chosen folder, the checkpoint's files are taken:", options, () => {
  const list = (paths) => paths.map((path) => Object.defineProperty(new File([path], path.split("/").pop()), "webkitRelativePath", { value: path }));
  const cases = [
    ["files of the folder", ["m/config.json", "m/model.safetensors"], { "config.json": "m/config.json", "model.safetensors": "m/model.safetensors" }],
    ["files of subfolders, by their paths", ["m/w/a.bin", "m/config.json"], { "config.json": "m/config.json", "w/a.bin": "m/w/a.bin" }],
    ["the outer model, with another model in a subfolder", ["m/onnx/config.json", "m/config.json", "m/onnx/generation_config.json"], {
      "config.json": "m/config.json", "onnx/config.json": "m/onnx/config.json", "onnx/generation_config.json": "m/onnx/generation_config.json",
    }],
    ["the only model, in a subfolder", ["top/readme", "top/m/config.json", "top/m/w/a.bin"], { "config.json": "top/m/config.json", "w/a.bin": "top/m/w/a.bin" }],
    ["a file without a config.json", ["top/m/model.gguf"], { "model.gguf": "top/m/model.gguf" }],
  ];
  for (const [name, paths, wanted] of cases) {
    test(name, async () => {
      const { files } = sourceSpec(list(paths));
      assert.deepEqual(Object.fromEntries(await Promise.all(Object.entries(files).map(async ([file, { blob }]) => [file, await blob.text()]))), wanted);
    });
  }

  test("two models side by side are an error", () => fails(
    () => lowbit.openCheckpoint(list(["top/a/config.json", "top/b/config.json"])), "invalid_argument", /several: top\/a\/, top\/b\//,
  ));
});

test("web pages are distinguished from files", options, () => {
  const { pageIn } = package_;
  const page = [
    ["<!doctype html><html>"], ["<!DOCTYPE HTML PUBLIC \"-//W3C//DTD HTML 4.01//EN\">"], ["<html lang=\"en\">"], ["<head><title>"], ["<body>"], ["\ufeff\n  <!doctype html>"],
    ["<!-- built today --> <!-- by us -->\n<!doctype html>"], ["<?xml version=\"1.0\"?>\n<!DOCTYPE html PUBLIC \"x\">"], ["<?xml version=\"1.0\"?><html xmlns=\"x\">"],
    ["Not Found", "text/html"], ["", "text/html"], ["<script>", "text/html; charset=utf-8"], ["<div>{{ app }}</div>", "TEXT/HTML"], ["<p>", " application/xhtml+xml"],
    ["<!doctype html>{{ app }}", "text/html", "chat_template.jinja"], ["<!doctype html>{% app %}", undefined, "chat_template.jinja"],
  ];
  const file = [
    ["{\"a\": 1}"], ["{\"a\": 1}", "text/html"], ["\ufeff [1]", "text/html"], ["\x40\0\0\0\0\0\0\0{}", "text/html", "model.safetensors"], ["\n\x0e\n\x05<unk>", "text/html", "tokenizer.model"],
    ["GGUF\x03\0\0\0", "text/html", "model.gguf"], ["{%- for m in messages %}", "text/html", "chat_template.jinja"], ["<|im_start|>{{ x }}", "text/html", "chat_template.jinja"],
    ["You are a cat. {{ x }}", "text/html", "chat_template.jinja"], ["<s>{{ x }}", undefined, "chat_template.jinja"], ["<htmlx>", undefined], ["<!-- a comment -->\n{{ x }}", undefined, "chat_template.jinja"],
    ["<!-- one without an end"], ["MIT License", "text/plain"], ["<?xml version=\"1.0\"?><svg>"], ["text/html", "text/htmlx"],
  ];
  for (const [text, type, name = "some.json"] of page) assert.notEqual(pageIn(name, type, Buffer.from(text)), undefined, `${type} ${text}`);
  for (const [text, type, name = "some.json"] of file) assert.equal(pageIn(name, type, Buffer.from(text)), undefined, `${type} ${text}`);
  assert.match(pageIn("a", undefined, Buffer.from("<html><title>\n Log\tin\u0007 </title>")), /titled "Log in"/);
  assert.match(pageIn("a", undefined, Buffer.from(`<html><title>${"x".repeat(500)}</title>`)), /titled "x{60}"/);
});

test("adversarial bytes do not slow down the check for web pages", options, () => {
  for (const text of ["<!---->".repeat(1e5), `${"<!--".repeat(1e5)}`, `<!--${"-->".repeat(1e5)}`, " ".repeat(1e6), "<?xml ".repeat(1e5), "<title".repeat(1e5)]) {
    assert.equal(package_.pageIn("a", undefined, Buffer.from(text)), undefined);
    assert.notEqual(package_.pageIn("a", "text/html", Buffer.from(text)), undefined);
  }
});
