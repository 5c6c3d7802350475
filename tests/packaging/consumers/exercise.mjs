// Run by every consumer: opens a checkpoint, quantizes it with two methods, runs and validates the results.

/** `lowbit` is the imported package, `input` the test's texts and prompt. */
export async function exercise(lowbit, source, input) {
  const { openCheckpoint, quantize, loadModel, validate, capabilities } = lowbit;
  const { heldOut, calibration, prompt } = input;
  const original = await openCheckpoint(source);
  const found = { parameters: original.info.parameters, schemes: {} };
  const schemes = {
    rtn: { bits: 4, groupSize: 32 },
    gptq: { method: "gptq", bits: 4, groupSize: 32, calibration },
  };
  for (const [name, options] of Object.entries(schemes)) {
    const phases = new Set();
    const small = await quantize(original, { ...options, onProgress: ({ phase }) => phases.add(phase) });
    const model = await loadModel(small, { device: "cpu" });
    const pieces = [];
    for await (const piece of model.generate(prompt, { maxTokens: 16, ignoreEos: true })) pieces.push(piece.text);
    const { tokenIds } = await model.generate(prompt, { maxTokens: 16, ignoreEos: true }).result();
    const report = await validate(original, small, { texts: heldOut, prompts: [prompt], maxTokens: 8, speedRounds: 0, device: "cpu" });
    found.schemes[name] = {
      layout: small.info.layout,
      sha256: await sha256((await small.files())["model.safetensors"]),
      text: pieces.join(""),
      tokenIds,
      perplexity: report.perplexity.quantized,
      accepted: report.accepted,
      phases: [...phases],
    };
    model.dispose();
    small.dispose();
  }
  const automatic = await loadModel(original);
  found.automatic = automatic.info;
  automatic.dispose();
  const { engine, worker } = await capabilities();
  found.capabilities = { engine, worker };
  found.errors = {};
  for (const [name, work] of Object.entries({
    misspelled: () => quantize(original, { bit: 4 }),
    missing: () => openCheckpoint(`${source}-that-is-not-there`),
  })) {
    found.errors[name] = await work().then(() => "none", (error) => (error instanceof lowbit.LowbitError ? error.code : String(error)));
  }
  return found;
}

async function sha256(bytes) {
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
