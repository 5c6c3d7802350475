// Long work: one at a time, with its progress, how long it will take, a way to cancel, and its failure told.
import { el, show } from "./dom.js";
import { seconds } from "./format.js";

const PHASES = {
  open: "Opening", load: "Loading the weights", calibrate: "Learning from the text", quantize: "Rounding and writing",
  layers: "Measuring each layer", perplexity: "Reading the text", compare: "Both models read the text",
  generate: "Continuing passages", speed: "Timing both", convert: "Writing", dequantize: "Restoring the weights",
};

/**
 * Does `work({signal, onProgress})` and shows it in `host`. Gives what it gave; undefined where it was cancelled or failed,
 * which is shown.
 */
export async function job(store, host, name, work) {
  if (store.get().busy) return undefined;
  store.set({ busy: true });
  const stop = new AbortController();
  const view = jobView(name, () => stop.abort());
  show(host, view.element);
  try {
    const result = await work({ signal: stop.signal, onProgress: view.progress });
    show(host);
    return result;
  } catch (error) {
    if (error?.code === "cancelled") show(host, el("p", { class: "notice", role: "status" }, `${name}: cancelled. Nothing was kept of it.`));
    else show(host, failure(name, error));
    return undefined;
  } finally {
    store.set({ busy: false });
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
  internal: "The engine broke down. Reload the page to start again.",
  not_found: "Is the address right, and are all files of the checkpoint there?",
};

/** A failure in the library's own words. */
export function failure(name, error) {
  const message = error?.message ?? String(error);
  const hint = HINTS[error?.code];
  return el("div", { class: "notice bad", role: "alert" },
    el("p", {}, el("strong", {}, `${name}: `), message),
    hint && el("p", {}, hint),
    error?.code && el("p", {}, "Code ", el("code", {}, error.code)));
}

/** Asks before a reload throws work away. */
export function guardReloads(store) {
  addEventListener("beforeunload", (event) => {
    if (store.get().busy) event.preventDefault();
  });
}
