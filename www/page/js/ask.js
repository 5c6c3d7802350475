// A confirmation dialog, shown before something is lost.
import { el } from "./dom.js";

/** Shows the dialog and resolves to whether the answer was `yes`. Escape counts as `no`. */
export function agreed({ title, text, yes, no }) {
  return new Promise((resolve) => {
    const answer = (word, properties) =>
      el("button", { type: "button", ...properties, onclick: () => dialog.close(properties.value) }, word);
    const dialog = el("dialog", { class: "ask", "aria-labelledby": "ask-title", "aria-describedby": "ask-text" },
      el("h2", { id: "ask-title" }, title), el("p", { id: "ask-text" }, text),
      el("div", { class: "row" }, answer(no, { class: "primary", value: "no" }), answer(yes, { value: "yes" })));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
