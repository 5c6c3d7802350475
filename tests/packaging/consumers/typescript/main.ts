// usage: main.js INPUT_FILE
// Uses every public type once, under the strictest settings and without platform types.
import {
  capabilities, Checkpoint, compare, convert, createEngine, dequantize, type Engine, Generation, loadModel, LowbitError, Model,
  openCheckpoint, type Output, perplexity, plan, quantize, validate,
} from "lowbit";
import type {
  Calibration, Capabilities, ChatMessage, CheckpointInfo, CheckpointSource, Comparison, ConvertSummary, ErrorCode, FileWriter,
  GenerateOptions, GenerateResult, LoadOptions, ModelInfo, OpenOptions, PerplexityResult, Plan, Progress, QuantizationRecord,
  QuantizeOptions, QuantizeSummary, RandomAccessFile, Recipe, Target, ValidateOptions, ValidationReport,
} from "lowbit";
import type { GivenModule, SlimOptions } from "lowbit/slim";

declare const process: { argv: string[] };
declare const console: { log(text: string): void };
interface Input {
  source: string;
  heldOut: string;
  calibration: Calibration;
  prompt: string;
}

const { readFileSync } = (await import("node:fs" as string)) as { readFileSync(path: string, encoding: "utf8"): string };
const input = JSON.parse(readFileSync(process.argv[2]!, "utf8")) as Input;

const opening: OpenOptions = { gptqZeros: "v1" };
const source: CheckpointSource = input.source;
const original: Checkpoint = await openCheckpoint(source, opening);
const info: CheckpointInfo = original.info;

const seen: Progress[] = [];
const recipe: Recipe = { rules: [{ modules: "*.down_proj", bits: 8 }] };
const calibration: Calibration = { ...input.calibration, samples: 2 };
const options: QuantizeOptions = { method: "gptq", bits: 4, groupSize: 32, recipe, calibration, onProgress: (progress) => seen.push(progress) };
const small: Output<QuantizeSummary> = await quantize(original, options);
const record: QuantizationRecord = small.summary.record;
const files: Record<string, Uint8Array> = await small.files();

const pieces: Uint8Array[] = [];
const writer: FileWriter = { write: (bytes) => pieces.push(bytes), close: () => undefined };
const target: Target = () => writer;
await quantize(original, { bits: 8, target });
const file: RandomAccessFile = { size: 4, read: (offset, length) => new Uint8Array(4).subarray(offset, offset + length) };
let code: ErrorCode | undefined;
try {
  await openCheckpoint({ "config.json": file });
} catch (error) {
  if (error instanceof LowbitError) code = error.code;
}

const loading: LoadOptions = { device: "cpu", activations: "f32" };
const model: Model = await loadModel(small, loading);
const about: ModelInfo = model.info;
const generating: GenerateOptions = { maxTokens: 4, temperature: 0, stop: ["\n\n"] };
const generation: Generation = model.generate(input.prompt, generating);
let text = "";
for await (const piece of generation) text += piece.text;
const result: GenerateResult = await generation.result();
const messages: readonly ChatMessage[] = [{ role: "user", content: "Hello" }];
const chat: string = await model.chat(messages).text().catch((error: LowbitError) => error.code);
const score: PerplexityResult = await perplexity(model, input.heldOut, { context: 128 });
const logprobs: Float64Array = await model.logprobs(result.promptIds);
const rows: Float32Array[] = await model.logits(result.promptIds);

const judging: ValidateOptions = { texts: input.heldOut, prompts: [input.prompt], maxTokens: 2, speedRounds: 0, device: "cpu" };
const report: ValidationReport = await validate(original, small, judging);
const compared: Comparison[] = await compare(original, small, { prompts: [input.prompt], maxTokens: 2, device: "cpu" });
const converted: Output<ConvertSummary> = await convert(small, { format: "gguf" });
const wide: Output<object> = await dequantize(small, { dtype: "f32" });
const needs: Plan = await plan(original, { memory: 1e9 });
const here: Capabilities = await capabilities();

const engine: Engine = createEngine({ worker: false });
await engine.dispose();

const module: GivenModule = new Uint8Array();
const modules: SlimOptions["modules"] = { engine: module, tokenizer: module };

// @ts-expect-error A misspelled option is a type error.
const misspelled: QuantizeOptions = { bit: 4 };
// @ts-expect-error Five bits are not supported.
const five: QuantizeOptions = { bits: 5 };

console.log(
  JSON.stringify({
    parameters: info.parameters, layout: small.info.layout, method: record.method, files: Object.keys(files), written: pieces.length > 0,
    code, device: about.device, text, tokens: result.tokenIds.length, chat, perplexity: score.perplexity, logprobs: logprobs.length,
    rows: rows.length, schema: report.schema, compared: compared.length, converted: converted.info.layout, wide: wide.info.layout,
    precisions: needs.precisions.length, engine: here.engine, phases: seen.length > 0, unused: [misspelled, five, modules].length,
  }),
);
