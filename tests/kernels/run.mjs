// Runs the GPU tests that are compiled into an engine module. Works on every platform with WebAssembly.

/**
 * Runs the GPU tests one after the other, on a real or a software adapter. Resolves to `{ adapter, passed }`, with each
 * test's duration in milliseconds, or to `{ none }`, with the reason, if there is no adapter.
 *
 * @param engine The JavaScript of a module that was built with its tests
 * @param wasm The module itself, or its URL
 * @param uncaught Rejects on an uncaught error. A failed test traps the module, and its promise then never settles.
 * @param begins Called with each test's name when it starts
 */
export async function runGpuTests(engine, wasm, uncaught, begins = () => {}) {
  const said = [];
  const { error } = console;
  console.error = (...words) => said.push(words.join(" "));
  let name = "opening the adapter";
  try {
    const failed = uncaught.catch((reason) => Promise.reject(new Error(`${name}: ${[reason?.message ?? reason, ...said].join("\n")}`)));
    await engine.default({ module_or_path: wasm });
    let adapter;
    try {
      adapter = await Promise.race([engine.gpuUnderTest(), failed]);
    } catch (error) {
      if (error?.code === "no_device") return { none: error.message };
      throw error;
    }
    const passed = {};
    for (name of engine.gpuTests()) {
      begins(name);
      const start = performance.now();
      await Promise.race([engine.runGpuTest(name), failed]);
      passed[name] = Math.round(performance.now() - start);
    }
    return { adapter, passed };
  } finally {
    console.error = error;
  }
}
