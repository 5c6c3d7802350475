// The device line: what models run on here, whether it was checked, and why not on a GPU.
import { capabilities } from "../lowbit.js";
import { byId, el, show } from "./dom.js";

export async function showDevice(store) {
  const line = byId("device");
  try {
    const found = await capabilities();
    store.set({ capabilities: found });
    const select = el("select", { id: "device-choice", "aria-label": "Device", onchange: () => store.set({ device: select.value }) },
      el("option", { value: "auto" }, "automatic"), el("option", { value: "cpu" }, "CPU"),
      found.adapters.some((adapter) => adapter.error === null) && el("option", { value: "gpu" }, "GPU"));
    show(line, "Runs on ", el("b", {}, processor(found)), ". ", ...found.adapters.flatMap((adapter) => [adapterLine(adapter), " "]),
      found.adapters.length === 0 && "GPU: this browser offers none (WebGPU), so models run on the CPU. ",
      el("label", {}, "Run models on: ", select));
  } catch (error) {
    show(line, el("span", { class: "notice bad", role: "alert" }, `The engine does not start: ${error.message}`));
  }
}

const processor = ({ engine, cpu }) => `${cpu.replace(/^cpu/, "CPU")}, WebAssembly ${engine}`;

function adapterLine({ name, api, kind, error }) {
  const checked = error === null ? "its kernels were checked against the CPU and agree" : `not used: ${error}`;
  const software = kind === "software" && error === null ? "; a software adapter, so only taken when it is asked for" : "";
  return el("span", {}, "GPU: ", el("b", {}, name || "unnamed"), ` (${api}, ${kind}), ${checked}${software}.`);
}
