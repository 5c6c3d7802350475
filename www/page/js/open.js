// Opening a checkpoint, from wherever it is, and the card that says what it is.
import { openCheckpoint, plan } from "../lowbit.js";
import { agreed } from "./ask.js";
import { modelCard } from "./card.js";
import { byId, el, show } from "./dom.js";
import { failure, job, OPENING } from "./jobs.js";
import * as sources from "./sources.js";

/** What may be wrong with an address, beside what the library says. */
const ADDRESS_HINTS = {
  io: "The server has to be up, and has to let other pages read its files (CORS). A repository on the hub has to be a public one.",
};

export function setUpOpening(store) {
  const host = byId("model-job");
  let shown;
  let current;
  let asked = 0;
  /** Opens what `find` finds; what was open stays open where that fails. What is opened last counts: it ends an opening before it. */
  const open = async (find, hints) => {
    const mine = (asked += 1);
    current?.stop.abort();
    await current?.done;
    const { busy } = store.get();
    if (busy !== undefined) return show(host, el("p", { class: "notice", role: "status" }, `${busy} is under way. Open the model when it is done, or cancel it.`));
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
    // Without any model, the ways to one are what is wanted.
    if (store.get().model === undefined && mine === asked) byId("open-other").open = true;
  };

  byId("pick-folder").addEventListener("change", ({ target }) => pick(target));
  byId("pick-files").addEventListener("change", ({ target }) => pick(target));
  const pick = (input) => {
    const chosen = [...input.files];
    // The same files can be chosen again then.
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
    // The list of what was dropped is gone after this turn.
    const found = sources.dropped(transfer);
    found.catch(() => {});
    open(() => found);
  });

  store.on(["model", "busy"], ({ model, busy }) => {
    if (model !== undefined && model === shown) return;
    shown = model;
    show(byId("card"), model ? modelCard(model) : el("p", { class: "empty" }, busy ? "The model is on its way …" : "No model is open yet."));
  });
  store.on(["busy"], ({ busy }) => {
    const blocked = busy !== undefined && busy !== OPENING;
    for (const id of ["pick-folder", "pick-files", "open-shipped"]) byId(id).disabled = blocked;
    byId("open-address").querySelector("button").disabled = blocked;
  });
  open(sources.shipped);
}

/** Another model takes the place of what was made of this one. */
async function mayForget(store) {
  const { unsaved } = store.get();
  if (unsaved === 0) return true;
  const [results, it] = unsaved === 1 ? ["One result was", "it"] : [`${unsaved} results were`, "them"];
  return agreed({
    title: "Open another model?", text: `${results} not taken away. Opening another model forgets ${it}.`,
    no: "Stay here", yes: `Open, and forget ${it}`,
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
