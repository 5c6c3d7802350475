// What visitors write as a model's address. Nothing here touches the page.

const HUB = "https://huggingface.co";

/** `org/model`: two names, and no more. The package reads it in the same way. */
const REPOSITORY = /^[A-Za-z0-9][\w.-]*\/[A-Za-z0-9][\w.-]*$/;

/**
 * `{source, revision, base, label, from}` of an address. `source` and `revision` are for the package, `base` is where single files
 * are; `here` is the page's own address, for those that are relative.
 */
export function placeOf(text, here) {
  const given = text.trim();
  const { name, revision = "main" } = repositoryOf(given) ?? {};
  if (name !== undefined) {
    const base = `${HUB}/${name}/resolve/${encodeURIComponent(revision)}/`;
    return { source: name, revision, base, label: name.split("/")[1], from: `${name} on the Hugging Face hub` };
  }
  const url = addressOf(given, here);
  const file = url.pathname.endsWith(".gguf");
  if (!file && !url.pathname.endsWith("/")) url.pathname += "/";
  const last = url.pathname.split("/").filter(Boolean).pop();
  return { source: url.href, base: url.href, label: last === undefined ? url.host : decodeURIComponent(last), from: url.href };
}

/** A repository by its name, or by its page on the hub: that is the address that people copy. */
function repositoryOf(given) {
  if (REPOSITORY.test(given)) return { name: given };
  const [, name, revision] = /^https:\/\/(?:huggingface\.co|hf\.co)\/([^/?#]+\/[^/?#]+)(?:\/tree\/([^/?#]+))?\/?(?:[?#].*)?$/.exec(given) ?? [];
  if (name === undefined || !REPOSITORY.test(name)) return undefined;
  return { name, revision: revision && decodeURIComponent(revision) };
}

function addressOf(given, here) {
  let url;
  try {
    url = new URL(given, here);
  } catch {
    throw new Error(`${given}: expected an address that begins with https://, or org/model`);
  }
  // The hub shows a file as a page under `blob`, and gives it under `resolve`.
  if (url.origin === HUB) url.pathname = url.pathname.replace(/^(\/[^/]+\/[^/]+)\/blob\//, "$1/resolve/");
  return url;
}
