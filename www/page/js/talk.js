// Generation with both models: one prompt, streamed into two columns, and where they diverge.
import { loadModel } from "../lowbit.js";
import { commonStart, firstDifference } from "./difference.js";
import { byId, el, show } from "./dom.js";
import { bytes, count } from "./format.js";
import { job } from "./jobs.js";
import { shippedText } from "./sources.js";

export function setUpTalking(store) {
  const form = byId("talk-form");
  const host = byId("talk-job");
  const models = modelCache();
  let prompts;
  let at = 0;

  byId("another-prompt").addEventListener("click", async () => {
    prompts ??= (await shippedText("prompts.txt")).split("\n").filter(Boolean);
    at = (at + 1) % prompts.length;
    form.elements.prompt.value = prompts[at];
  });

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { model, run, device } = store.get();
    const prompt = form.elements.prompt.value;
    const options = { maxTokens: form.elements.maxTokens.valueAsNumber, temperature: form.elements.temperature.valueAsNumber, seed: 1 };
    const sides = [{ title: titleOf(model), checkpoint: model.checkpoint, size: model.checkpoint.info.bytes, kind: "first" }];
    if (run) sides.push({ title: run.name, checkpoint: run.output, size: run.output.info.bytes, kind: "second" });
    const voices = sides.map((side) => voice(side, prompt));
    show(byId("voices"), voices.map(({ element }) => element), !run && waiting());
    show(byId("first-difference"));
    await job(store, host, "Generating", async ({ signal, onProgress }) => {
      const results = [];
      for (const [index, { checkpoint }] of sides.entries()) {
        const loaded = await models.load(checkpoint, device, { signal, onProgress });
        results.push(await speak(voices[index], loaded, prompt, { ...options, signal, onProgress }, results[0]));
      }
      if (results.length === 2) tellDifference(voices, results);
      if (run) store.learn(run.id, { tokensPerSecond: results[1].tokensPerSecond });
      store.set({ originalTokensPerSecond: results[0].tokensPerSecond });
    });
    voices.forEach(({ rest }) => rest());
  });

  store.on(["model"], ({ model }) => {
    models.clear();
    show(byId("voices"));
    show(byId("first-difference"));
    if (model && !model.shipped) byId("another-prompt").hidden = true;
    if (model?.shipped) byId("another-prompt").hidden = false;
  });
  store.on(["busy", "model"], ({ busy, model }) => {
    form.querySelector("[type=submit]").disabled = busy || model === undefined;
  });
}

const titleOf = (model) => (["dense", "gguf"].includes(model.checkpoint.info.layout) ? "Original" : model.label);

function waiting() {
  return el("div", { class: "voice second" }, el("h3", {}, "Quantized"), el("p", { class: "empty" }, "Quantize the model above to run it here."));
}

/** Keeps two models loaded: the original and the run that generated last. */
function modelCache() {
  const held = new Map();
  return {
    async load(checkpoint, device, control) {
      const found = held.get(checkpoint);
      if (found?.device === device) return found.loaded;
      found?.loaded.dispose();
      held.delete(checkpoint);
      if (held.size > 1) {
        // The original was added first, so the last entry is another run's.
        const [last] = [...held.keys()].slice(-1);
        held.get(last).loaded.dispose();
        held.delete(last);
      }
      const loaded = await loadModel(checkpoint, { device, ...control });
      held.set(checkpoint, { device, loaded });
      return loaded;
    },
    clear() {
      held.forEach(({ loaded }) => loaded.dispose());
      held.clear();
    },
  };
}

/** One column. Its text has two parts: shared with the other column, and its own. */
function voice({ title, size, kind }, prompt) {
  const same = el("span", { class: "same" });
  const other = el("mark", { hidden: true });
  const rest = el("span");
  const text = el("p", { class: "text" }, el("span", { class: "given" }, prompt), same, other, rest);
  const figures = el("p", { class: "figures num" }, el("span", {}, el("b", {}, bytes(size)), " of weights"));
  const element = el("article", { class: `voice ${kind}`, "aria-label": title }, el("h3", {}, title), text, figures);
  return {
    element, figures,
    /** The first `shared` UTF-16 units of `said` are the same in both columns. */
    say(said, shared) {
      same.textContent = said.slice(0, shared);
      const apart = said.slice(shared);
      // Highlight only the first differing word.
      const word = /^\s*\S*/.exec(apart)[0];
      other.textContent = word;
      rest.textContent = apart.slice(word.length);
      other.hidden = word === "";
    },
    begin: () => text.classList.add("busy"),
    rest: () => text.classList.remove("busy"),
  };
}

async function speak(column, model, prompt, options, before) {
  column.begin();
  let said = "";
  const generation = model.generate(prompt, options);
  for await (const piece of generation) {
    said += piece.text;
    column.say(said, before === undefined ? said.length : commonStart(before.text, said));
  }
  const result = await generation.result();
  column.rest();
  const why = model.info.fallbackReason;
  column.figures.append(...[
    result.tokensPerSecond !== null && el("span", {}, el("b", {}, count(result.tokensPerSecond)), " tokens/s"),
    el("span", {}, `${result.tokenIds.length} tokens`),
    el("span", {}, model.info.device.replace(/^cpu/, "CPU"), why && `; no GPU: ${why}`),
  ].filter(Boolean));
  return result;
}

function tellDifference(voices, [a, b]) {
  const at = firstDifference(a.tokenIds, b.tokenIds);
  const shared = commonStart(a.text, b.text);
  voices[0].say(a.text, shared);
  voices[1].say(b.text, shared);
  const total = Math.min(a.tokenIds.length, b.tokenIds.length);
  const together = at === 0 ? "They diverge at the first token" : `The first ${at} ${at === 1 ? "token is" : "tokens are"} identical; they diverge at token ${at + 1}`;
  show(byId("first-difference"), at === null ? `Both outputs are identical, all ${total} tokens.` : `${together}.`);
}
