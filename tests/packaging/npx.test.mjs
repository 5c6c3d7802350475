// The package's command line: the native command's code, in Node. Its functions are tested in tests/it. These tests
// check that it behaves the same when run from the package: paths, written files, exit codes and output.
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { chmodSync, copyFileSync, cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { basename, join, relative } from "node:path";
import { test } from "node:test";
import { QUANTIZED } from "../js/cases.mjs";
import { MODEL, input, project, run } from "./support.mjs";

const golden = JSON.parse(readFileSync(new URL("../js/golden.json", import.meta.url), "utf8"));

/** A project with the package, texts, and a copy of the model whose name needs quoting. */
const NAME = "ein Modell, größer – 模型";
const folder = await project();
const model = join(folder, NAME);
cpSync(MODEL, model, { recursive: true });
writeFileSync(join(folder, "heldout.txt"), input.heldOut);

const command = join(folder, "node_modules/.bin/lowbit");

/** Runs the installed command. Returns its exit code and output. */
function lowbit(args, options = {}) {
  return new Promise((done) => {
    execFile(command, args, { cwd: folder, maxBuffer: 1 << 26, ...options }, (error, stdout, stderr) => {
      done({ code: error === null ? 0 : error.code, stdout, stderr });
    });
  });
}

/** Runs the command with `--json` and returns the document. Asserts the exit code. */
async function json(args, { code = 0, ...options } = {}) {
  const ran = await lowbit([...args, "--json"], options);
  assert.equal(ran.code, code, ran.stderr);
  return JSON.parse(ran.stdout);
}

/** Asserts that a run fails with code 2 and one line on stderr. Returns the line. */
async function refused(args, options) {
  const ran = await lowbit(args, options);
  assert.equal(ran.code, 2, ran.stderr);
  assert.equal(ran.stdout, "");
  assert.match(ran.stderr, /^error: [^\n]+\n$/);
  return ran.stderr;
}

const sha256 = (path) => createHash("sha256").update(readFileSync(path)).digest("hex");

/** Quantizes to INT4. */
const quantize = (source, output, options) => json(["quantize", source, "-o", output, "--bits", "4", "--group-size", "32"], options);

test("npx runs the command", async () => {
  assert.equal(await run("npx", ["--offline", "lowbit", "--version"], { cwd: folder }), "lowbit 0.1.0\n");
  const plan = JSON.parse(await run("npx", ["--offline", "lowbit", "plan", "--params", "500M", "--memory", "8GB", "--json"], { cwd: folder }));
  assert.equal(plan.recommendation.precision, "int8");
});

test("stderr is empty, and help fits the terminal's width", async () => {
  for (const columns of ["60", "100"]) {
    const { code, stdout, stderr } = await lowbit(["quantize", "--help"], { env: { ...process.env, COLUMNS: columns } });
    assert.deepEqual([code, stderr], [0, ""]);
    assert.match(stdout, /Usage: lowbit quantize /);
    const widest = Math.max(...stdout.split("\n").map((line) => line.length));
    assert.ok(widest <= Number(columns) && widest > Number(columns) - 20, `${widest} of ${columns} columns`);
  }
});

test("Node's warnings about anything but WASI are shown", async () => {
  const warn = "setImmediate(() => process.emitWarning('something else', 'ExperimentalWarning'))";
  const env = { ...process.env, NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(warn)}` };
  const { code, stderr } = await lowbit(["plan", "--params", "500M"], { env });
  assert.equal(code, 0);
  assert.match(stderr, /ExperimentalWarning: something else/);
  assert.doesNotMatch(stderr, /WASI/);
});

test("relative, parent, absolute, non-ASCII and symlinked paths work", async () => {
  const inside = join(folder, "a folder", "inside");
  mkdirSync(inside, { recursive: true });
  // The layout of the Hugging Face cache.
  const linked = join(folder, "snapshots", "1");
  mkdirSync(linked, { recursive: true });
  for (const file of readdirSync(MODEL)) symlinkSync(join("..", "..", NAME, file), join(linked, file));
  symlinkSync(model, join(folder, "absolute link"));
  symlinkSync(join("snapshots", "1"), join(folder, "link to links"));
  const places = [[folder, NAME], [folder, `./${NAME}/`], [folder, model], [inside, join("..", "..", NAME)], [model, "."], [folder, linked], [folder, "absolute link"], [folder, "link to links"]];
  for (const [cwd, path] of places) {
    const { stdout, stderr, code } = await lowbit(["inspect", path, "--json"], { cwd });
    assert.deepEqual([code, stderr], [0, ""], path);
    const { parameters, path: named } = JSON.parse(stdout);
    assert.deepEqual([parameters, named], [705_408, path]);
  }
  const { perplexity } = await json(["perplexity", "link to links", "--text", "link to links/prompts.txt"]);
  assert.ok(perplexity > 1);
  for (const [cwd, output] of [[inside, "out 1"], [inside, join("..", "größe")], [folder, join(inside, "模型")]]) {
    const document = await quantize(relative(cwd, model), output, { cwd });
    assert.equal(document.output, output);
    assert.ok(readdirSync(join(output.startsWith("/") ? "" : cwd, output)).includes("model.safetensors"));
  }
  // Every spelling of the source's path is recognized as the source.
  for (const output of [NAME, model, "absolute link", join("snapshots", "..", NAME)]) {
    assert.match(await refused(["quantize", model, "-o", output]), /the output folder is the source/);
  }
});

test("it writes the same bytes as the native command", async (t) => {
  for (const { name, args, same } of QUANTIZED) {
    if (!same) continue;
    await t.test(name, async () => {
      const output = join(folder, "written", name);
      const { stderr, code } = await lowbit(["quantize", model, "-o", output, ...args]);
      assert.equal(code, 0, stderr);
      for (const [file, hash] of Object.entries(golden.quantized[name])) assert.equal(sha256(join(output, file)), hash, file);
      assert.deepEqual(readdirSync(output).filter((file) => file.startsWith(".")), [], "no temporary files are left");
    });
  }
});

test("generate gives the native command's tokens, and the reason why no GPU is used", async () => {
  const [{ prompt, token_ids, text }] = golden.run.original.greedy;
  const args = ["generate", NAME, "--prompt", prompt, "--max-tokens", String(token_ids.length), "--ignore-eos"];
  const document = await json(args);
  assert.deepEqual(document.token_ids, token_ids);
  assert.equal(document.text, text);
  assert.match(document.fallback_reason, /built without GPU support/);
  assert.equal((await json([...args, "--device", "cpu"])).fallback_reason, null);
  assert.match(await refused([...args, "--device", "gpu"]), /built without GPU support/);
  const { stdout, stderr } = await lowbit(args);
  assert.equal(stdout, `${prompt}${text}\n`);
  assert.match(stderr, /^\[32 tokens, /);
});

test("validate returns the verdict as its exit code", async () => {
  await quantize(NAME, "judged");
  const args = ["validate", NAME, "judged", "--text", "heldout.txt", "--min-speed-ratio", "0"];
  const limits = [[0, "0.5"], [1, "-1"]];
  for (const [code, limit] of limits) {
    const report = await json([...args, "--max-perplexity-increase", limit, "--max-new-failures", "99"], { code });
    assert.equal(report.schema, "lowbit.validation/1");
    assert.equal(report.accepted, code === 0);
    assert.ok(Math.abs(report.perplexity.original / golden.run.original.perplexity - 1) < 1e-4);
  }
});

test("calibration cleans its scratch folder, supports --resume, and appends metrics", async () => {
  writeFileSync(join(folder, "calibration.txt"), input.calibration.texts[0]);
  const scratch = mkdtempSync(join(folder, "scratch "));
  const learn = ["quantize", NAME, "--method", "gptq", "--group-size", "32", "--samples", "4", "--sequence-length", "128", "--calibration", "calibration.txt"];
  const env = { ...process.env, TMPDIR: scratch };
  await json([...learn, "-o", "learned", "--metrics", "figures.jsonl"], { env });
  await json([...learn, "-o", "learned again", "--metrics", "figures.jsonl", "--resume", "state"], { env });
  const [first, second] = ["learned", "learned again"].map((output) => sha256(join(folder, output, "model.safetensors")));
  assert.equal(first, second);
  assert.deepEqual(readdirSync(scratch), [], "no scratch files are left");
  assert.equal(readFileSync(join(folder, "figures.jsonl"), "utf8").match(/"quantization_seconds"/g).length, 2);
});

test("wrong usage and missing files give exit code 2 with one line, or one document with --json", async () => {
  const usage = await lowbit(["quantize", NAME]);
  assert.deepEqual([usage.code, usage.stdout], [2, ""]);
  assert.match(usage.stderr, /^error: the following required arguments were not provided:\n/);
  for (const [args, code, words] of [
    [["inspect", "no such folder"], "not_found", /^no such folder: no such file or directory/],
    [["inspect", "../no/such"], "not_found", /^\.\.\/no\/such: /],
    [["inspect", join(folder, "nichts", "ähnliches")], "not_found", /nichts\/ähnliches: /],
    [["quantize", NAME, "-o", "x", "--bits", "5"], "invalid_argument", /5/],
  ]) {
    const line = await refused(args);
    const { error } = await json(args, { code: 2 });
    assert.equal(error.code, code);
    assert.match(error.message, words);
    assert.equal(line, `error: ${error.message}\n`);
  }
  assert.equal((await json(["quantize", NAME, "--bits"], { code: 2 })).error.code, "invalid_argument");
});

test("an output folder without write permission is an error", async () => {
  const closed = join(folder, "closed");
  mkdirSync(closed);
  chmodSync(closed, 0o555);
  chmodSync(folder, 0o755);
  // Root can write everywhere, so run as another user.
  const nobody = process.getuid() === 0 ? { uid: 65534, gid: 65534 } : {};
  assert.match(await refused(["quantize", NAME, "-o", "closed"], nobody), /^error: closed\/[^:]+: permission denied/);
  assert.match(await refused(["quantize", NAME, "-o", "closed/new"], nobody), /^error: closed\/new: permission denied/);
  assert.deepEqual(readdirSync(closed), []);
});

test("a model beyond 4 GiB is refused with one line", async () => {
  const large = join(folder, "large");
  mkdirSync(large);
  for (const file of ["tokenizer.json", "tokenizer_config.json"]) copyFileSync(join(MODEL, file), join(large, file));
  const config = {
    ...JSON.parse(readFileSync(join(MODEL, "config.json"), "utf8")),
    hidden_size: 65_536, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 1, num_key_value_heads: 1, head_dim: 64, vocab_size: 40_000,
  };
  const { hidden_size: hidden, intermediate_size: inner, head_dim: head, vocab_size: vocabulary } = config;
  writeFileSync(join(large, "config.json"), JSON.stringify(config));
  const shapes = { "model.embed_tokens.weight": [vocabulary, hidden], "model.norm.weight": [hidden] };
  for (const name of ["input", "post_attention"]) shapes[`model.layers.0.${name}_layernorm.weight`] = [hidden];
  for (const name of ["q", "k", "v"]) shapes[`model.layers.0.self_attn.${name}_proj.weight`] = [head, hidden];
  for (const name of ["gate", "up"]) shapes[`model.layers.0.mlp.${name}_proj.weight`] = [inner, hidden];
  for (const [name, columns] of [["self_attn.o", head], ["mlp.down", inner]]) shapes[`model.layers.0.${name}_proj.weight`] = [hidden, columns];
  let end = 0;
  const header = {};
  for (const [name, shape] of Object.entries(shapes)) {
    header[name] = { dtype: "F16", shape, data_offsets: [end, (end += 2 * shape.reduce((product, length) => product * length))] };
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  const file = join(large, "model.safetensors");
  writeFileSync(file, Buffer.concat([length, text]));
  // A sparse file, which takes no disk space.
  truncateSync(file, 8 + text.length + end);
  assert.match(await refused(["generate", "large", "--prompt", "x"]), /cannot allocate|do not fit/);
});

/** A WebAssembly module that runs only the instructions in `body`. */
function moduleOf(...body) {
  const name = (text) => [text.length, ...Buffer.from(text)];
  const section = (id, ...content) => [id, content.length, ...content];
  return Uint8Array.from([
    0, ...Buffer.from("asm"), 1, 0, 0, 0,
    ...section(1, 1, 0x60, 0, 0), ...section(3, 1, 0), ...section(5, 1, 0, 1),
    ...section(7, 2, ...name("memory"), 2, 0, ...name("_start"), 0, 0),
    ...section(10, 1, body.length + 2, 0, ...body, 0x0b),
  ]);
}

/**
 * A module that 4000 times grows its memory and opens a missing file, and then traps. Called directly, it crashes
 * Node's WASI.
 */
const GREEDY = Buffer.from(
  "AGFzbQEAAAABEQJgCX9/f39/fn5/fwF/YAAAAiQBFndhc2lfc25hcHNob3RfcHJldmlldzEJcGF0aF9vcGVuAAADAgEBBQMBAAEHEwIGbWVtb3J5AgAGX3N0YXJ0AAEKNAEyAQF/A0BBCEAAGkEDQQFBwABBEUEAQgJCAkEAQQAQABogAEEBaiEAIABBoB9JDQALAAsLGAEAQcAACxFuby9zdWNoL2ZpbGUvaGVyZQ==",
  "base64",
);

test("a trap of the module gives a message and an exit code, without a stack trace", async () => {
  const broken = mkdtempSync(join(folder, "broken "));
  const cli = join(broken, "cli.js");
  copyFileSync(join(folder, "node_modules/lowbit/dist/cli.js"), cli);
  // `unreachable` is how a failed allocation traps; 1 / 0 stands for a bug.
  const cases = [
    [moduleOf(0x00), 2, "more memory than WebAssembly has"],
    [moduleOf(0x41, 1, 0x41, 0, 0x6d, 0x1a), 101, "divide by zero"],
    [GREEDY, 2, "more memory than WebAssembly has"],
  ];
  for (const [module, code, words] of cases) {
    writeFileSync(join(broken, "cli.wasm"), module);
    const ran = await new Promise((done) => execFile(process.execPath, [cli], (error, stdout, stderr) => done({ code: error?.code, stdout, stderr })));
    assert.deepEqual([ran.code, ran.stdout], [code, ""]);
    assert.match(ran.stderr, /^error: [^\n]+\n$/);
    assert.ok(ran.stderr.includes(words), ran.stderr);
  }
});

test("an interrupt ends the command while it computes", { timeout: 120_000 }, async () => {
  const args = ["perplexity", NAME, "--text", join(NAME, "calibration.txt")];
  const child = spawn(command, args, { cwd: folder, stdio: "ignore" });
  const ended = new Promise((done) => child.on("exit", (code, signal) => done({ code, signal })));
  // Long enough for the module to start computing, and a small part of the whole run.
  const early = await Promise.race([ended, new Promise((done) => setTimeout(done, 3000))]);
  assert.equal(early, undefined, "the run ended too early for the interrupt");
  child.kill("SIGINT");
  // A shell reports this as 130.
  assert.deepEqual(await ended, { code: null, signal: "SIGINT" });
});

test("only cli.wasm contains the command line", () => {
  const dist = join(folder, "node_modules/lowbit/dist");
  const words = ["clap_builder", "Print a single JSON document to standard output"];
  for (const file of readdirSync(dist).filter((name) => name.endsWith(".wasm"))) {
    const module = readFileSync(join(dist, file));
    for (const word of words) assert.equal(module.includes(word), basename(file) === "cli.wasm", `${file}: ${word}`);
  }
});
