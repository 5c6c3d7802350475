// Quantizing: the files, their targets, and that they equal the native command's files.
import assert from "node:assert/strict";
import { cpSync, existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { pathToFileURL } from "node:url";
import { CONVERTED, QUANTIZED } from "./cases.mjs";
import { CALIBRATION, fails, golden, lowbit, MODEL, names, sha256, temporary } from "./support.mjs";

const engine = lowbit.createEngine();
after(() => engine.dispose());
const original = await engine.openCheckpoint(MODEL);

const FILES = [
  "config.json", "generation_config.json", "model.safetensors", "quantization_config.json", "tokenizer.json",
  "tokenizer_config.json",
];

describe("the files equal the native command's", () => {
  for (const { name, options, learns, same } of QUANTIZED) {
    test(name, async (t) => {
      const small = await engine.quantize(original, { ...options, ...(learns && { calibration: { texts: [CALIBRATION], ...learns } }) });
      const files = await small.files();
      assert.deepEqual(Object.keys(files).sort(), FILES);
      const wanted = golden.quantized[name];
      assert.equal(sha256(files["config.json"]), wanted["config.json"], "config.json");
      const equal = sha256(files["model.safetensors"]) === wanted["model.safetensors"];
      if (same) assert.ok(equal, "model.safetensors");
      else t.diagnostic(`model.safetensors is ${equal ? "" : "not "}equal byte for byte`);
      small.dispose();
    });
  }

  for (const { name, of, options, file } of CONVERTED) {
    test(`converted to ${name}`, async () => {
      const from = of === "original" ? original : await engine.quantize(original, { bits: 4, groupSize: 32 });
      const converted = await engine.convert(from, options);
      assert.equal(sha256((await converted.files())[file]), golden.converted[name]);
      assert.equal(converted.info.parameters, original.info.parameters);
    });
  }
});

describe("the result is a checkpoint", () => {
  const formats = [
    [{ bits: 4, groupSize: 32 }, "compressed-tensors"],
    [{ bits: 4, groupSize: 32, format: "gptq" }, "gptq"],
    [{ bits: 4, groupSize: 32, format: "gptq-v2", symmetric: false }, "gptq_v2"],
    [{ bits: 4, groupSize: 32, format: "awq", symmetric: false }, "awq"],
    [{ method: "ternary" }, "bitnet"],
  ];
  for (const [options, layout] of formats) {
    test(`${JSON.stringify(options)} opens as ${layout}, from memory and as files`, async () => {
      const small = await engine.quantize(original, options);
      const opened = await engine.openCheckpoint(await small.files());
      for (const checkpoint of [small, opened]) {
        assert.equal(checkpoint.info.layout, layout);
        assert.ok(checkpoint.info.bytes < original.info.bytes);
      }
    });
  }

  test("its record describes how it was made", async () => {
    const small = await engine.quantize(original, { bits: 4, groupSize: 32, recipe: { rules: [{ modules: "*.mlp.*", bits: 8 }] } });
    const { record, modules, bytes, sourceBytes, notes } = small.summary;
    assert.equal(record.schema, "lowbit.quantization/1");
    assert.equal(record.method, "rtn");
    assert.equal(record.modules.length, 21);
    assert.match(record.modules.find(({ name }) => name.endsWith("mlp.up_proj")).scheme, /int8/i);
    assert.equal(modules.length, 21);
    assert.ok(modules.every(({ snrDb, maxAbsError }) => snrDb > 10 && maxAbsError > 0));
    assert.ok(bytes < sourceBytes);
    assert.equal(notes.length, 1, "one note for the rule, with the number of its modules");
    assert.match(notes[0], /^9 modules: int8.*rule 1/);
    const files = await small.files();
    assert.equal(Buffer.from(files["quantization_config.json"]).toString(), lowbit.fileText(record), "the file's exact text");
  });

  test("a fallback is in the notes, or an error with `strict`", async () => {
    const small = await engine.quantize(original, { bits: 4, groupSize: 96 });
    assert.equal(small.summary.notes.length, 21);
    await fails(engine.quantize(original, { bits: 4, groupSize: 96, strict: true }), "unsupported_format", /96/);
  });

  test("files() returns copies", async () => {
    const small = await engine.quantize(original, { bits: 8 });
    const files = await small.files();
    files["model.safetensors"].fill(0);
    files["config.json"] = null;
    const again = await small.files();
    assert.equal(sha256(again["model.safetensors"]), golden.quantized.int8["model.safetensors"]);
  });

  test("dequantize gives a floating-point checkpoint", async () => {
    const small = await engine.quantize(original, { bits: 4, groupSize: 32 });
    for (const [options, format] of [[{}, "F16"], [{ dtype: "f32" }, "F32"]]) {
      const wide = await engine.dequantize(small, options);
      assert.equal(wide.info.layout, "dense");
      assert.deepEqual(wide.info.linearFormats, { [format]: 21 });
      assert.ok("quantization_metadata.json" in (await wide.files()));
    }
  });

  test("a conversion reports its losses", async () => {
    const small = await engine.quantize(original, { bits: 4, groupSize: 32 });
    const { summary } = await engine.convert(small, { format: "gguf" });
    assert.equal(summary.format, "gguf");
    assert.ok(Array.isArray(summary.notes) && Array.isArray(summary.losses));
    assert.equal(typeof summary.largestWeightDifference, "number");
  });
});

describe("a target:", () => {
  const folder = temporary();
  const wanted = golden.quantized["int4 group 32"]["model.safetensors"];
  const options = { bits: 4, groupSize: 32 };

  for (const [name, target] of [["a path", (path) => path], ["a file: URL", (path) => pathToFileURL(path)], ["a file: URL as a string", (path) => pathToFileURL(path).href]]) {
    test(name, async () => {
      const path = join(folder, name.replace(/\W/g, "-"), "deep");
      const small = await engine.quantize(original, { ...options, target: target(path) });
      assert.deepEqual(names(path), FILES);
      assert.equal(sha256(readFileSync(join(path, "model.safetensors"))), wanted);
      assert.equal(small.info.layout, "compressed-tensors");
      await fails(small.files(), "invalid_argument", /target/);
      const again = await engine.openCheckpoint(path);
      assert.equal(again.info.bytes, small.info.bytes);
    });
  }

  test("an earlier result in the folder is replaced", async () => {
    const path = join(folder, "twice");
    await engine.quantize(original, { bits: 8, target: path });
    writeFileSync(join(path, ".model.safetensors.0123.lowbit.tmp"), "left over");
    await engine.quantize(original, { ...options, target: path });
    assert.deepEqual(names(path), FILES);
    assert.equal(sha256(readFileSync(join(path, "model.safetensors"))), wanted);
  });

  test("a folder with another checkpoint is refused", async () => {
    const path = join(folder, "mine");
    cpSync(MODEL, path, { recursive: true });
    const before = names(path);
    await fails(engine.quantize(original, { ...options, target: path }), "invalid_argument", /mine/);
    assert.deepEqual(names(path), before);
    assert.deepEqual(readFileSync(join(path, "model.safetensors")), readFileSync(join(MODEL, "model.safetensors")));
  });

  test("an output without its last file does not open", async () => {
    const path = join(folder, "killed");
    await engine.quantize(original, { ...options, target: path });
    rmSync(join(path, "quantization_config.json"));
    await fails(engine.openCheckpoint(path), "unfinished_output", /quantization_config\.json/);
  });

  /** A target of streams into memory. Records the files, the order in which they were closed, and the aborted ones. */
  function streams(asStream) {
    const seen = { files: {}, closed: [], aborted: [] };
    seen.target = (file) => {
      const pieces = [];
      const writer = {
        write: (bytes) => void pieces.push(bytes.slice()),
        close: () => {
          seen.files[file] = Buffer.concat(pieces);
          seen.closed.push(file);
        },
        abort: () => void seen.aborted.push(file),
      };
      return asStream ? new WritableStream(writer) : writer;
    };
    return seen;
  }

  for (const asStream of [true, false]) {
    test(asStream ? "a WritableStream for each file" : "a writer for each file", async () => {
      const seen = streams(asStream);
      const small = await engine.quantize(original, { ...options, target: seen.target });
      assert.deepEqual(Object.keys(seen.files).sort(), FILES);
      assert.equal(sha256(seen.files["model.safetensors"]), wanted);
      assert.equal(seen.closed.at(-1), "quantization_config.json", "the file that completes the output is last");
      assert.deepEqual(seen.aborted, []);
      assert.equal(small.readable, false);
      assert.equal(small.summary.record.method, "rtn");
      for (const use of [() => small.info, () => engine.loadModel(small), () => small.files(), () => small.tokenize("a")]) {
        await fails(use, "invalid_argument", /stream|target/);
      }
      assert.equal((await engine.openCheckpoint(seen.files)).info.layout, "compressed-tensors");
    });
  }

  const broken = (where) => (file) => ({
    write: () => {
      if (where === "write") throw Object.assign(new Error("ENOSPC: no space left on device"), { code: "ENOSPC" });
    },
    close: () => {
      if (where === "close" && file === "model.safetensors") throw new Error("the connection broke");
    },
    abort: () => {},
  });
  const failures = [
    ["a writer without room", broken("write"), "storage_full", /no space/],
    ["a writer that fails at the end", broken("close"), "io", /model\.safetensors.*connection broke/],
    ["a function that throws", () => { throw new Error("not today"); }, "io", /not today/],
    ["a function that returns nothing", () => undefined, "invalid_argument", /writer|stream/],
    ["a path that is a file", join(MODEL, "config.json"), "io", /config\.json/],
    ["a path below a file", join(MODEL, "config.json", "x"), "io", /config\.json/],
    ["a number", 5, "invalid_argument", /target/],
    ["an object", { path: "x" }, "invalid_argument", /target/],
    ["a private file system outside a browser", { opfs: "x" }, "invalid_argument", /OPFS/],
  ];
  for (const [name, target, code, pattern] of failures) {
    test(`${name} is an error`, () => fails(engine.quantize(original, { ...options, target }), code, pattern));
  }

  test("a full disk is an error", { skip: !existsSync("/dev/full") && "skipped: no /dev/full here" }, async () => {
    const given = [];
    const target = async (file) => {
      const handle = await open("/dev/full", "w");
      const done = (how) => async () => {
        given.push([file, how]);
        await handle.close();
      };
      return { write: (bytes) => handle.writeFile(bytes), close: done("closed"), abort: done("aborted") };
    };
    await fails(engine.quantize(original, { ...options, target }), "storage_full", /space/);
    assert.deepEqual(given, [["config.json", "aborted"]]);
  });
});
