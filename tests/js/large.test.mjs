// Large checkpoints: quantizing 2 GB needs the memory of a few tensors, and memory matches the plan.
import assert from "node:assert/strict";
import { test } from "node:test";
import { fails, lowbit, modelFiles } from "./support.mjs";

/**
 * Limit of the engine's memory; measured: 33 MB for tensors of 23 MB. WebAssembly memory never shrinks, so its final
 * size is its peak.
 */
const PEAK = 600e6;

const config = {
  model_type: "llama", architectures: ["LlamaForCausalLM"], hidden_act: "silu", hidden_size: 2048, intermediate_size: 5632,
  num_hidden_layers: 19, num_attention_heads: 16, num_key_value_heads: 16, head_dim: 128, vocab_size: 2048,
  max_position_embeddings: 512, rms_norm_eps: 1e-5, tie_word_embeddings: true, torch_dtype: "float16",
};

/** A virtual safetensors file: its weights repeat one megabyte of small numbers. */
function synthetic({ hidden_size: hidden, intermediate_size: inner, num_hidden_layers: layers } = config) {
  const shapes = { "model.embed_tokens.weight": [config.vocab_size, hidden], "model.norm.weight": [hidden] };
  for (let layer = 0; layer < layers; layer += 1) {
    const place = `model.layers.${layer}`;
    for (const name of ["q", "k", "v", "o"]) shapes[`${place}.self_attn.${name}_proj.weight`] = [hidden, hidden];
    for (const name of ["gate", "up"]) shapes[`${place}.mlp.${name}_proj.weight`] = [inner, hidden];
    shapes[`${place}.mlp.down_proj.weight`] = [hidden, inner];
    for (const name of ["input", "post_attention"]) shapes[`${place}.${name}_layernorm.weight`] = [hidden];
  }
  let end = 0;
  const header = {};
  for (const [name, shape] of Object.entries(shapes)) {
    const bytes = 2 * shape.reduce((product, length) => product * length, 1);
    header[name] = { dtype: "F16", shape, data_offsets: [end, (end += bytes)] };
  }
  const text = new TextEncoder().encode(JSON.stringify(header).padEnd(65528));
  const head = new Uint8Array(8 + text.length);
  new DataView(head.buffer).setBigUint64(0, BigInt(text.length), true);
  head.set(text, 8);
  const weights = new Uint16Array(1 << 19);
  // f16 values with magnitudes between 0.03 and 0.06, of either sign.
  let state = 1;
  for (let i = 0; i < weights.length; i += 1) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    weights[i] = ((state >>> 31) << 15) | 0x2800 | ((state >>> 8) & 0x3ff);
  }
  const block = new Uint8Array(weights.buffer);
  const read = (offset, length) => {
    const out = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const at = offset + done;
      const from = at < head.length ? head.subarray(at) : block.subarray((at - head.length) % block.length);
      const part = from.subarray(0, length - done);
      out.set(part, done);
      done += part.length;
    }
    return out;
  };
  return { size: head.length + end, read };
}

test("2 GB are quantized in a small part of that memory", { timeout: 600_000 }, async (t) => {
  const engine = lowbit.createEngine();
  const { "tokenizer.json": tokenizer } = modelFiles();
  const weights = synthetic();
  assert.ok(weights.size > 1.9e9, `${weights.size}`);
  const checkpoint = await engine.openCheckpoint({
    "config.json": new TextEncoder().encode(JSON.stringify(config)), "tokenizer.json": tokenizer, "model.safetensors": weights,
  });
  let written = 0;
  const target = () => ({ write: (bytes) => void (written += bytes.length), close: () => {} });
  const output = await engine.quantize(checkpoint, { bits: 4, groupSize: 32, target });
  assert.ok(written > output.summary.bytes && written < weights.size / 3, `${written} bytes written`);
  const { memory } = await engine.capabilities();
  t.diagnostic(`note: quantizing ${weights.size} bytes took ${memory} bytes of the engine's memory`);
  assert.ok(memory < PEAK, `${memory}`);
  await engine.dispose();
});

test("a model too large for the engine's memory is refused on the CPU before its weights are read", async () => {
  const engine = lowbit.createEngine();
  const large = { ...config, num_hidden_layers: 44 };
  const weights = synthetic(large);
  assert.ok(weights.size > 2 ** 32);
  let bytes = 0;
  const { "tokenizer.json": tokenizer } = modelFiles();
  const checkpoint = await engine.openCheckpoint({
    "config.json": new TextEncoder().encode(JSON.stringify(large)), "tokenizer.json": tokenizer,
    "model.safetensors": { size: weights.size, read: (at, n) => ((bytes += n), weights.read(at, n)) },
  });
  await fails(engine.loadModel(checkpoint, { device: "cpu" }), "out_of_memory", new RegExp(`needs \\d+ bytes.*GPU.*quantize`));
  assert.ok(bytes < 1e6, `${bytes} bytes were read`);
  await engine.dispose();
});

/**
 * How far the engine's memory may be below and above the plan, as a share of the plan. WebAssembly memory never
 * shrinks, and heap fragmentation differs between runs. Measured: gptq 0.10 below to 0.02 above, awq 0.08 below to 0.04
 * above.
 */
const [LESS, MORE] = [0.15, 0.1];

for (const method of ["gptq", "awq"]) {
  test(`${method}: the engine's memory matches the plan`, { timeout: 600_000 }, async (t) => {
    const engine = lowbit.createEngine();
    const small = { ...config, hidden_size: 1024, intermediate_size: 2048, num_hidden_layers: 1, num_attention_heads: 8, num_key_value_heads: 8 };
    const { "tokenizer.json": tokenizer } = modelFiles();
    const checkpoint = await engine.openCheckpoint({
      "config.json": new TextEncoder().encode(JSON.stringify(small)), "tokenizer.json": tokenizer, "model.safetensors": synthetic(small),
    });
    const tokens = Uint32Array.from({ length: 512 }, (_, i) => (i * 7919) % config.vocab_size);
    const target = () => ({ write: () => {}, close: () => {} });
    const options = { method, bits: 4, groupSize: 128, calibration: { tokens, samples: 2, sequenceLength: 256 }, device: "cpu", target };
    const { summary } = await engine.quantize(checkpoint, options);
    const planned = summary.plannedMemory.peakBytes;
    const { memory } = await engine.capabilities();
    t.diagnostic(`note: planned ${planned} bytes, ${memory} taken (${(memory / planned - 1).toFixed(3)})`);
    assert.ok(memory > (1 - LESS) * planned && memory < (1 + MORE) * planned, `${memory} of ${planned}`);
    await engine.dispose();
  });
}
