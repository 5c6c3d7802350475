// Opens a checkpoint from any source, and shows its model card.
import { openCheckpoint, plan } from "../lowbit.js";
import { agreed } from "./ask.js";
import { modelCard } from "./card.js";
import { byId, el, show } from "./dom.js";
import { failure, job, OPENING } from "./jobs.js";
import * as sources from "./sources.js";

/** Hints for addresses, shown below the library's message. */
const ADDRESS_HINTS = {
  io: "The server must be running and must allow other sites to read its files (CORS). A hub repository must be public.",
};

export function setUpOpening(store) {
  const host = byId("model-job");
  let shown;
  let current;
  let asked = 0;
  /** Opens what `find` returns. If that fails, the current model stays open. A later call cancels an earlier one. */
  const open = async (find, hints) => {
    const mine = (asked += 1);
    current?.stop.abort();
    await current?.done;
    const { busy } = store.get();
    if (busy !== undefined) return show(host, el("p", { class: "notice", role: "status" }, `${busy} is still running. Wait until it is done or cancel it, then open the model.`));
    if (mine !== asked || !(await mayForget(store)) || mine !== asked) return;
    const stop = new AbortController();
    const done = job(store, host, OPENING, async ({ signal }) => {
      const found = await find(signal);
      const checkpoint = await openCheckpoint(found.source, { ...found.options, signal });
      const before = store.get();
      store.set({ model: { ...found, checkpoint, plan: await plan(checkpoint) }, runs: [], run: undefined, unsaved: 0 });
      before.runs.forEach((run) => run.output.dispose());
      before.model?.checkpoint.dispose();
      byId("open-other").open = false;
    }, { stop, hints });
    current = { stop, done };
    await done;
    // No model is open, so show the ways to open one.
    if (store.get().model === undefined && mine === asked) byId("open-other").open = true;
  };

  byId("pick-folder").addEventListener("change", ({ target }) => pick(target));
  byId("pick-files").addEventListener("change", ({ target }) => pick(target));
  const pick = (input) => {
    const chosen = [...input.files];
    // Without this, choosing the same files again would fire no event.
    input.value = "";
    if (chosen.length > 0) open(() => sources.files(chosen));
  };
  byId("open-address").addEventListener("submit", (event) => {
    event.preventDefault();
    try {
      const found = sources.address(byId("address").value);
      open(() => found, ADDRESS_HINTS);
    } catch (error) {
      show(host, failure(OPENING, error));
    }
  });
  byId("open-shipped").addEventListener("click", () => open(sources.shipped));
  acceptDrops((transfer) => {
    // The browser empties the transfer's list after this event, so read it now.
    const found = sources.dropped(transfer);
    found.catch(() => {});
    open(() => found);
  });

  store.on(["model", "busy"], ({ model, busy }) => {
    if (model !== undefined && model === shown) return;
    shown = model;
    show(byId("card"), model ? modelCard(model) : el("p", { class: "empty" }, busy ? "The model is loading …" : "No model is open yet."));
  });
  store.on(["busy"], ({ busy }) => {
    const blocked = busy !== undefined && busy !== OPENING;
    for (const id of ["pick-folder", "pick-files", "open-shipped"]) byId(id).disabled = blocked;
    byId("open-address").querySelector("button").disabled = blocked;
  });
  open(sources.shipped);
}

/** Asks before unsaved results are lost: opening another model discards all runs of this one. */
async function mayForget(store) {
  const { unsaved } = store.get();
  if (unsaved === 0) return true;
  const [results, it] = unsaved === 1 ? ["One result is", "it"] : [`${unsaved} results are`, "them"];
  return agreed({
    title: "Open another model?", text: `${results} not saved. Opening another model discards ${it}.`,
    no: "Stay here", yes: `Open and discard ${it}`,
  });
}

function acceptDrops(take) {
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) document.body.classList.remove("dropping");
  });
  addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (!carriesFiles(event)) return;
    event.preventDefault();
    take(event.dataTransfer);
  });
}
