// Validation: the form, the job, and the report.
import { validate } from "../lowbit.js";
import { byId, show } from "./dom.js";
import { job } from "./jobs.js";
import { reportView } from "./report.js";
import { shippedText } from "./sources.js";

/** Characters of the shipped text for a quick validation. */
const PART = 12_000;

export function setUpJudging(store) {
  const form = byId("judge-form");
  const fields = form.elements;
  const host = byId("judge-job");

  const follow = () => {
    const own = fields.textFrom.value === "own";
    byId("own-text").hidden = !own;
    fields.ownText.required = own;
  };
  form.addEventListener("change", follow);
  follow();

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { model, run, device } = store.get();
    const from = fields.textFrom.value;
    const report = await job(store, host, "Validating", async (control) => {
      const text = from === "own" ? fields.ownText.value : await shippedText("heldout.txt", control.signal);
      return validate(model.checkpoint, run.output, {
        texts: from === "part" ? text.slice(0, PART) : text,
        name: from === "own" ? "your text" : "unseen stories",
        device,
        limits: { maxPerplexityIncrease: fields.increase.valueAsNumber / 100 },
        ...(fields.speed.checked ? {} : { speedRounds: 0 }),
        ...control,
      });
    });
    if (report !== undefined) store.learn(run.id, { report });
  });

  store.on(["busy", "run"], ({ busy, run }) => {
    form.querySelector("[type=submit]").disabled = busy || run === undefined;
    byId("judge-says").textContent = run === undefined ? "Quantize the model first." : `Validates ${run.name}.`;
  });
  let shown;
  store.on(["run"], ({ run, model }) => {
    // Redraw only for another report, so what the reader opened or selected in it stays.
    if (run?.report === shown) return;
    shown = run?.report;
    show(byId("report"), run?.report && reportView(store, model, run));
  });
}
