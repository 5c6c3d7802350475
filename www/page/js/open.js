// Opening a checkpoint, from wherever it is, and the card that says what it is.
import { openCheckpoint, plan } from "../lowbit.js";
import { modelCard } from "./card.js";
import { byId, show } from "./dom.js";
import { failure, job } from "./jobs.js";
import * as sources from "./sources.js";

export function setUpOpening(store) {
  const host = byId("model-job");
  let task = Promise.resolve();
  /** Opens what `find` finds; what was open stays open where that fails. */
  const open = (find) => {
    task = job(store, host, "Opening", async ({ signal }) => {
      const found = await find(signal);
      const checkpoint = await openCheckpoint(found.source, { signal });
      const before = store.get();
      store.set({ model: { ...found, checkpoint, plan: await plan(checkpoint) }, runs: [], run: undefined });
      before.runs.forEach((run) => run.output.dispose());
      before.model?.checkpoint.dispose();
      byId("open-other").open = false;
    });
    return task;
  };
  const tell = (error) => show(host, failure("Opening", error));

  byId("pick-folder").addEventListener("change", ({ target }) => pick(target));
  byId("pick-files").addEventListener("change", ({ target }) => pick(target));
  const pick = (input) => {
    const chosen = [...input.files];
    // The same files can be chosen again then.
    input.value = "";
    if (chosen.length > 0) open(() => sources.files(chosen)).catch(tell);
  };
  byId("open-address").addEventListener("submit", (event) => {
    event.preventDefault();
    open(async () => sources.address(byId("address").value));
  });
  byId("open-shipped").addEventListener("click", () => open(sources.shipped));
  acceptDrops((transfer) => {
    // The list of what was dropped is gone after this turn.
    const found = sources.dropped(transfer);
    found.catch(() => {});
    open(() => found);
  });

  store.on(["model"], ({ model }) => show(byId("card"), model ? modelCard(model) : "The shipped model is on its way …"));
  store.on(["busy"], ({ busy }) => {
    for (const id of ["pick-folder", "pick-files", "open-shipped"]) byId(id).disabled = busy;
    byId("open-address").querySelector("button").disabled = busy;
  });
  return open(sources.shipped);
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
