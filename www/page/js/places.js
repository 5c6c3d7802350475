// What visitors write as a model's address, and what of their files is a model. Nothing here touches the page.

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

/** Whether a file can hold weights for an index that names it. */
export const isShard = (path) => /\.safetensors$/i.test(path);

/**
 * The files of a checkpoint by their names, of `[path, file]` for whatever was given. Its folder is the uppermost one with a
 * config.json, or with anything; of what is in folders of that one only shards can belong to it.
 */
export function filesByName(entries) {
  const configs = entries.filter(([path]) => /(^|\/)config\.json$/.test(path));
  const among = (configs.length > 0 ? configs : entries).map(([path]) => path);
  const depth = (path) => path.split("/").length;
  const least = Math.min(...among.map(depth));
  const folders = new Set(among.filter((path) => depth(path) === least).map((path) => path.slice(0, path.lastIndexOf("/") + 1)));
  const [folder = ""] = folders;
  if (folders.size > 1) throw new Error(`expected one model but found several: ${[...folders].slice(0, 4).join(", ")}`);
  const inside = entries.filter(([path]) => path.startsWith(folder)).map(([path, file]) => [path.slice(folder.length), file]);
  return Object.fromEntries(inside.filter(([name]) => !name.includes("/") || isShard(name)));
}
