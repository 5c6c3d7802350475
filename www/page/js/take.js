// Saves a result as a zip or into a folder, in its own format or converted to another tool's.
import { convert, fileText } from "../lowbit.js";
import { byId, el, show } from "./dom.js";
import { bytes, short } from "./format.js";
import { failure, job } from "./jobs.js";
import { download, zipped } from "./zip.js";

const FORMATS = {
  "compressed-tensors": "compressed-tensors (transformers, vLLM)", gptq: "GPTQ", "gptq-v2": "GPTQ, version 2 (GPTQModel)",
  awq: "AWQ", bitnet: "BitNet", gguf: "GGUF (llama.cpp)",
};

export function setUpTaking(store) {
  const form = byId("take-form");
  const select = form.elements.format;
  const host = byId("take-job");
  const result = byId("take-result");

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    save(zipDestination);
  });
  const folders = byId("save-folder");
  folders.hidden = globalThis.showDirectoryPicker === undefined;
  folders.addEventListener("click", async () => {
    show(result);
    let handle;
    try {
      // The picker may only be opened from within the click's handler.
      handle = await showDirectoryPicker({ mode: "readwrite", id: "lowbit" });
    } catch (error) {
      // AbortError means that the user closed the picker.
      if (error.name !== "AbortError") show(host, failure("Saving", error));
      return;
    }
    save(folderDestination(handle));
  });

  const save = async (destination) => {
    const { run, model } = store.get();
    const format = select.value;
    show(result);
    const saved = await job(store, host, "Saving", async (control) => {
      const { output, summary } = await written(run, format, control);
      try {
        const files = await output.files();
        if (run.report !== undefined && format !== "gguf") {
          files["validation_report.json"] = new TextEncoder().encode(fileText(run.report));
        }
        return { summary, ...(await destination(folderName(model, run, format), files, control.signal)) };
      } finally {
        if (output !== run.output) output.dispose();
      }
    });
    if (saved === undefined) return;
    store.set({ unsaved: 0 });
    show(result, savedView(saved));
  };

  store.on(["busy", "run"], ({ busy, run }) => {
    for (const button of form.querySelectorAll("button")) button.disabled = busy || run === undefined;
    byId("take-knobs").hidden = run === undefined;
    byId("take-says").textContent = run === undefined ? "Quantize the model first." : `Saves ${run.name}.`;
  });
  let listed;
  store.on(["run"], ({ run }) => {
    if (run?.id === listed) return;
    listed = run?.id;
    show(result);
    const own = run?.summary.record.format;
    // BitNet is a scheme of its own, not another format for the others.
    const others = Object.keys(FORMATS).filter((name) => name !== own && name !== "bitnet");
    show(select, run && [el("option", { value: "" }, `${FORMATS[own] ?? own}, unchanged`), ...others.map((name) => el("option", { value: name }, FORMATS[name]))]);
  });
}

/** The run's own output, or a conversion of it. */
async function written(run, format, control) {
  if (format === "") return { output: run.output };
  const output = await convert(run.output, { format, ...control });
  return { output, summary: output.summary };
}

const folderName = (model, run, format) =>
  [model.label, run.summary.record.scheme, format].filter(Boolean).join("-").replace(/[^\w.-]+/g, "-");

async function zipDestination(name, files) {
  const names = Object.keys(files);
  const single = names.length === 1 && names[0].endsWith(".gguf");
  const blob = single ? new Blob([files[names[0]]]) : await zipped(name, files);
  const file = single ? `${name}.gguf`.replace(/-gguf\.gguf$/, ".gguf") : `${name}.zip`;
  download(blob, file);
  return { where: file, size: blob.size };
}

/** Saves into a subfolder of the chosen folder, so the result does not mix with other files. */
function folderDestination(chosen) {
  return async (name, files, signal) => {
    const handle = await chosen.getDirectoryHandle(name, { create: true });
    let size = 0;
    // The record is written last: a folder without it is known to be incomplete.
    const last = "quantization_config.json";
    const names = Object.keys(files).sort((a, b) => (a === last) - (b === last));
    for (const name of names) {
      signal.throwIfAborted();
      const stream = await (await handle.getFileHandle(name, { create: true })).createWritable();
      await stream.write(files[name]);
      await stream.close();
      size += files[name].length;
    }
    return { where: `${name} in the folder ${chosen.name}`, size };
  };
}

function savedView({ where, size, summary }) {
  const losses = summary?.losses ?? [];
  const notes = [...(summary?.notes ?? []), ...losses.slice(0, 5).map(({ name, loss }) => `${name}: ${loss}`)];
  if (losses.length > 5) notes.push(`and ${losses.length - 5} more matrices`);
  const difference = summary?.largestWeightDifference;
  return el("div", { class: "notice good", role: "status" },
    el("p", {}, `Saved as ${where}, ${bytes(size)}. `,
      summary === undefined ? "Drop it here to open it again."
        : losses.length === 0 && !difference ? "The weights are the same." : difference ? `The largest weight difference is ${short(difference)}.` : ""),
    notes.length > 0 && el("ul", { class: "notes" }, notes.map((note) => el("li", {}, note))));
}
