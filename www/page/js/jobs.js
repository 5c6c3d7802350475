// Runs long jobs, one at a time: shows progress and remaining time, a cancel button, and the error if one fails.
import { el, show } from "./dom.js";
import { seconds } from "./format.js";

const PHASES = {
  open: "Opening", load: "Loading the weights", calibrate: "Calibrating", quantize: "Quantizing and writing",
  layers: "Measuring each layer", perplexity: "Measuring perplexity", compare: "Comparing both models",
  generate: "Generating continuations", speed: "Measuring speed", convert: "Writing", dequantize: "Dequantizing",
};

/** The name of the job that opens a model. Unlike other jobs, it is cancelled when another model is opened. */
export const OPENING = "Opening";

/**
 * Runs `work({signal, onProgress})` and shows its progress in `host`. Resolves to its result, or to undefined if it was
 * cancelled, failed, or another job is running. A failure is shown, with the hint that `hints` has for its code. `stop`
 * cancels the job.
 */
export async function job(store, host, name, work, { stop = new AbortController(), hints = {} } = {}) {
  if (store.get().busy) return undefined;
  const focused = document.activeElement;
  store.set({ busy: name });
  const view = jobView(name, () => stop.abort());
  show(host, view.element);
  try {
    const result = await work({ signal: stop.signal, onProgress: view.progress });
    show(host);
    return result;
  } catch (error) {
    // After a cancel, an error is not a failure.
    if (stop.signal.aborted || error?.code === "cancelled") show(host, el("p", { class: "notice", role: "status" }, `${name}: cancelled. Nothing was kept.`));
    else show(host, failure(name, error, hints));
    return undefined;
  } finally {
    store.set({ busy: undefined });
    // The pressed button was disabled and "Cancel" is gone, so the focus was lost. Restore it.
    if (document.activeElement === null || document.activeElement === document.body) focused?.focus({ preventScroll: true });
  }
}

function jobView(name, cancel) {
  const what = el("span", { class: "what", role: "status" }, name);
  const left = el("span", { class: "hint num" });
  const bar = el("progress", { "aria-label": name, max: 1 });
  const item = el("div", { class: "item" });
  const button = el("button", { type: "button", class: "cancel", onclick: () => {
    cancel();
    button.disabled = true;
    button.textContent = "Cancelling …";
  } }, "Cancel");
  const element = el("div", { class: "job" }, el("div", { class: "row" }, what, el("span", { class: "row" }, left, button)), bar, item);
  let phase;
  const progress = (report) => {
    if (report.phase !== phase) {
      phase = report.phase;
      what.textContent = `${name}: ${(PHASES[phase] ?? phase).toLowerCase()}`;
    }
    if (report.total > 0) bar.value = report.done / report.total;
    else bar.removeAttribute("value");
    item.textContent = report.item || "\u00a0";
    left.textContent = report.etaSeconds === undefined ? "" : `about ${seconds(Math.max(report.etaSeconds, 0.1))} left`;
  };
  return { element, progress };
}

const HINTS = {
  out_of_memory: "A tab has at most 4 GB. Try a smaller model.",
  storage_full: "The result does not fit in the tab's memory.",
  internal: "The engine failed. Reload the page to start again.",
  not_found: "Check the address, and that all files of the checkpoint are there.",
};

/** An error notice: the library's message, a hint, and the error's code. */
export function failure(name, error, hints = {}) {
  const message = error?.message ?? String(error);
  const hint = hints[error?.code] ?? HINTS[error?.code];
  return el("div", { class: "notice bad", role: "alert" },
    el("p", {}, el("strong", {}, `${name}: `), message),
    hint && el("p", {}, hint),
    typeof error?.code === "string" && el("p", {}, "Code ", el("code", {}, error.code)));
}

/** Asks before a reload loses running work or an unsaved result. */
export function guardReloads(store) {
  const ask = (event) => event.preventDefault();
  store.on(["busy", "unsaved"], ({ busy, unsaved }) => {
    // Only while there is something to lose: browsers keep no page with this listener in their back/forward cache.
    if (unsaved > 0 || (busy !== undefined && busy !== OPENING)) addEventListener("beforeunload", ask);
    else removeEventListener("beforeunload", ask);
  });
}
