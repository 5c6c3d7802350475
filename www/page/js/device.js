// The device line: the processor and GPU, the result of the GPU's self-check, and why a GPU is not used.
import { capabilities } from "../lowbit.js";
import { byId, el, show } from "./dom.js";
import { bytes } from "./format.js";

/** Adapter features that matter to a model's kernels. */
const FEATURES = ["shader-f16", "subgroups"];

export async function showDevice(store) {
  const line = byId("device");
  try {
    const [found, features] = await Promise.all([capabilities(), featuresOf()]);
    store.set({ capabilities: found });
    const select = el("select", { id: "device-choice", onchange: () => store.set({ device: select.value }) },
      el("option", { value: "auto" }, "automatic"), el("option", { value: "cpu" }, "CPU"),
      found.adapters.some((adapter) => adapter.error === null) && el("option", { value: "gpu" }, "GPU"));
    show(line,
      el("p", {}, "Runs on ", el("b", {}, processor(found)), ". "),
      found.adapters.map((adapter) => adapterLine(adapter, features)),
      found.adapters.length === 0 && el("p", {}, "GPU: this browser offers none (WebGPU), so models run on the CPU."),
      el("label", {}, "Run models on ", select));
  } catch (error) {
    show(line, el("p", { class: "notice bad", role: "alert" }, `The engine failed to start: ${error.message}`));
  }
}

/** Formats `cpu (relaxed-simd, 1 thread)`. It already names the engine's build, so the name is extended in place. */
const processor = ({ engine, cpu }) => `${cpu.replace(/^cpu/, "CPU").replace(engine, `WebAssembly, ${engine}`)}`;

/** The package reports the adapter's name and self-check. Its features come from the browser. */
async function featuresOf() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return FEATURES.filter((name) => adapter?.features.has(name));
}

function adapterLine({ name, api, kind, maxBindingBytes: binding, fastKernels: fast, replaced, error }, features) {
  const checked = error === null ? "its kernels were checked against the CPU and agree" : `not used: ${error}`;
  const faster = [fast.length > 0 && ` Faster with ${fast.join(", ")}.`, ...replaced.map((what) => ` ${what}.`)];
  const software = kind === "software" && error === null ? "; a software adapter, used only if selected" : "";
  const can = `${features.length > 0 ? features.join(", ") : `without ${FEATURES.join(" and ")}`}; buffers up to ${bytes(binding)}`;
  return el("p", {}, "GPU: ", el("b", {}, name || "unnamed"), ` (${api}, ${kind}), ${checked}${software}. Features: ${can}.`,
    faster);
}
