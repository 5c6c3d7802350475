// Runs the tests that are compiled into a module of the engine, wherever there is WebAssembly.

/**
 * The GPU's tests, one after the other, on a software adapter or a real one: `{ adapter, passed }` with the milliseconds of each,
 * or `{ none }` with the reason where there is no adapter.
 *
 * @param engine The JavaScript of a module that was built with the tests in it
 * @param wasm The module itself, or where it is
 * @param uncaught Rejects when the program meets an error that nobody catches. A test that fails ends the module, and nothing
 *   that waits for it is ever told.
 * @param begins Hears the name of each test that begins
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
