// Long work: one at a time, with its progress, how long it will take, a way to cancel, and its failure told.
import { el, show } from "./dom.js";
import { seconds } from "./format.js";

const PHASES = {
  open: "Opening", load: "Loading the weights", calibrate: "Learning from the text", quantize: "Rounding and writing",
  layers: "Measuring each layer", perplexity: "Reading the text", compare: "Both models read the text",
  generate: "Continuing passages", speed: "Timing both", convert: "Writing", dequantize: "Restoring the weights",
};

/** Opening a model: other than all other work, it gives way when another model is opened. */
export const OPENING = "Opening";

/**
 * Does `work({signal, onProgress})` and shows it in `host`. Gives what it gave; undefined where it was cancelled or failed,
 * which is shown, with what `hints` say of the error's code. `stop` is what cancels it.
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
    // Where it was cancelled, what came of that is no failure.
    if (stop.signal.aborted || error?.code === "cancelled") show(host, el("p", { class: "notice", role: "status" }, `${name}: cancelled. Nothing was kept of it.`));
    else show(host, failure(name, error, hints));
    return undefined;
  } finally {
    store.set({ busy: undefined });
    // The button that was pressed could not be used meanwhile, and "Cancel" is gone: the keyboard goes on where it was.
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
  internal: "The engine broke down. Reload the page to start again.",
  not_found: "Is the address right, and are all files of the checkpoint there?",
};

/** A failure in the library's own words. */
export function failure(name, error, hints = {}) {
  const message = error?.message ?? String(error);
  const hint = hints[error?.code] ?? HINTS[error?.code];
  return el("div", { class: "notice bad", role: "alert" },
    el("p", {}, el("strong", {}, `${name}: `), message),
    hint && el("p", {}, hint),
    typeof error?.code === "string" && el("p", {}, "Code ", el("code", {}, error.code)));
}

/** Asks before a reload throws away work, or a result that was not taken away. */
export function guardReloads(store) {
  const ask = (event) => event.preventDefault();
  store.on(["busy", "unsaved"], ({ busy, unsaved }) => {
    // Only while there is something to lose: browsers do not keep a page that listens for the way back to it.
    if (unsaved > 0 || (busy !== undefined && busy !== OPENING)) addEventListener("beforeunload", ask);
    else removeEventListener("beforeunload", ask);
  });
}
