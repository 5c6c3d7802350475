// Quantization: the form, the job, and the resulting size.
import { auto, quantize } from "../lowbit.js";
import { choicesOf, learns, nameOf, optionsOf, searchOptionsOf } from "./choices.js";
import { byId, el, show } from "./dom.js";
import { bytes, percent, seconds } from "./format.js";
import { job } from "./jobs.js";
import { shippedText } from "./sources.js";

/** Characters of held-out text that `auto` validates attempts on: enough for a verdict, and quick to read. */
const PART = 12_000;

export function setUpQuantizing(store) {
  const form = byId("shrink-form");
  const fields = form.elements;
  const host = byId("shrink-job");
  let nextId = 1;

  const follow = () => {
    const method = fields.method.value;
    byId("ternary-knobs").hidden = method !== "ternary";
    byId("auto-knobs").hidden = method !== "auto";
    byId("scheme-knobs").hidden = method === "ternary" || method === "auto";
    byId("calibration").hidden = !learns(method);
    const own = fields.calibrationFrom.value === "own";
    byId("own-calibration").hidden = !own;
    fields.calibrationText.required = own && learns(method);
  };
  form.addEventListener("change", follow);
  follow();
  // The usual group size: one scale per row loses little at 8 bits, but much at fewer.
  for (const radio of fields.bits) {
    radio.addEventListener("change", () => (fields.groupSize.value = radio.value === "8" ? "-1" : "32"));
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const choices = choicesOf(form);
    const { model } = store.get();
    if (choices.method === "auto") return search(choices, model);
    const began = performance.now();
    const output = await job(store, host, "Quantizing", async (control) => {
      const text = learns(choices.method) ? await calibrationText(fields, control.signal) : undefined;
      // Only methods with calibration run the model.
      const device = text !== undefined && { device: store.get().device };
      return quantize(model.checkpoint, { ...optionsOf(choices, text), ...device, ...control });
    });
    if (output === undefined) return;
    const run = {
      id: nextId++, name: nameOf(choices), method: choices.method, output, summary: output.summary,
      seconds: (performance.now() - began) / 1000,
    };
    keep([run], run);
  });

  /** Turns every attempt into a run with its report. Selects the accepted run, or else the last. */
  async function search(choices, model) {
    const found = await job(store, host, "Searching", async (control) => {
      const text = await calibrationText(fields, control.signal);
      const heldOut = await shippedText("heldout.txt", control.signal);
      const { device } = store.get();
      return auto(model.checkpoint, { ...searchOptionsOf(choices, text, heldOut.slice(0, PART)), device, ...control });
    });
    if (found === undefined) return;
    const made = found.attempts.map(({ name, output, report }) => ({
      id: nextId++, name: `Auto: ${name}`, method: "auto", output, report,
      summary: { ...output.summary, sourceBytes: model.checkpoint.info.bytes, modules: [], notes: [] },
    }));
    const chosen = made.find(({ output }) => output === found.accepted) ?? made.at(-1);
    chosen.summary.notes.push(found.recommendation);
    keep(made, chosen);
  }

  function keep(made, chosen) {
    const { runs, unsaved } = store.get();
    store.set({ runs: [...runs, ...made], run: chosen, unsaved: unsaved + made.length });
  }

  store.on(["model", "busy"], ({ model, busy }) => {
    const quantized = model !== undefined && !["dense", "gguf"].includes(model.checkpoint.info.layout);
    form.querySelector("[type=submit]").disabled = busy || model === undefined || quantized;
    const says = quantized ? "This checkpoint is already quantized. Generate with it below, or open a floating-point one." : "";
    const without = busy ? "The model is loading." : "Open a model first.";
    byId("shrink-says").textContent = model === undefined ? without : says;
  });
  store.on(["run"], ({ run }) => show(byId("shrink-result"), run && shrunk(run)));
}

async function calibrationText(fields, signal) {
  return fields.calibrationFrom.value === "own" ? fields.calibrationText.value : shippedText("calibration.txt", signal);
}

/** Two bars, one above the other: both sizes to scale. */
function shrunk({ name, summary, seconds: took }) {
  const { sourceBytes: before, bytes: after, record, notes } = summary;
  const strip = (value, second) =>
    el("div", { class: `strip${second ? " second" : ""}`, vars: { "--w": `${(value / Math.max(before, after)) * 100}%` } });
  return el("div", { class: "shrunk" },
    el("p", { class: "headline" }, `${bytes(before)} became ${bytes(after)}.`),
    el("p", { class: "label" }, "original, ", bytes(before)), strip(before, false),
    el("p", { class: "label" }, `${name}, ${bytes(after)}`), strip(after, true),
    el("p", { class: "hint" },
      `${percent(1 - after / before, 0)} smaller; ${record.bitsPerWeight.toFixed(2)} bits per quantized weight, scales included.${took === undefined ? "" : ` Took ${seconds(took)}.`}`),
    notes.length > 0 && el("ul", { class: "notes" }, notes.map((note) => el("li", {}, note))));
}
