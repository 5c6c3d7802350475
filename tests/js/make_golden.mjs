// Writes golden.json: results of the native command for the model that ships with the repository.
// usage: node tests/js/make_golden.mjs PATH_OF_LOWBIT
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { CALIBRATION_BYTES, CONVERTED, HELD_OUT_BYTES, NEW_TOKENS, PROMPTS, QUANTIZED, RUN } from "./cases.mjs";

const lowbit = process.argv[2];
const model = fileURLToPath(new URL("../fixtures/tale-llama", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "lowbit-golden-"));
const run = (...args) => execFileSync(lowbit, args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
const sha256 = (path) => createHash("sha256").update(readFileSync(path)).digest("hex");
const start = (name, bytes) => {
  const path = join(folder, name);
  writeFileSync(path, readFileSync(join(model, name)).subarray(0, bytes));
  return path;
};

const text = start("heldout.txt", HELD_OUT_BYTES);
const calibration = start("calibration.txt", CALIBRATION_BYTES);
const golden = { version: run("--version").trim(), quantized: {}, converted: {}, run: {} };
const places = { original: model };
for (const [index, { name, args, learns }] of QUANTIZED.entries()) {
  places[name] = join(folder, String(index));
  run("quantize", model, "-o", places[name], ...args, ...(learns ? ["--calibration", calibration] : []));
  golden.quantized[name] = { "model.safetensors": sha256(join(places[name], "model.safetensors")), "config.json": sha256(join(places[name], "config.json")) };
}
for (const [index, { name, of = "int4 group 32", args, file }] of CONVERTED.entries()) {
  const place = join(folder, `converted-${index}`);
  const output = file.endsWith(".gguf") ? `${place}.gguf` : place;
  run("convert", places[of], "-o", output, ...args);
  golden.converted[name] = sha256(file.endsWith(".gguf") ? output : join(place, file));
}
for (const name of RUN) {
  const greedy = PROMPTS.map((prompt) => {
    const args = ["--prompt", prompt, "--max-tokens", String(NEW_TOKENS), "--ignore-eos", "--json", "--device", "cpu"];
    const { prompt_ids, token_ids, text } = JSON.parse(run("generate", places[name], ...args));
    return { prompt, prompt_ids, token_ids, text };
  });
  const { perplexity, tokens } = JSON.parse(run("perplexity", places[name], "--text", text, "--json", "--device", "cpu"));
  golden.run[name] = { perplexity, tokens, greedy };
}
rmSync(folder, { recursive: true });
// The token ids of one text go on one line.
const lines = JSON.stringify(golden, null, 1).replace(/\[[\s\d,]+\]/g, (ids) => ids.replace(/\s+/g, " "));
writeFileSync(new URL("golden.json", import.meta.url), lines + "\n");
