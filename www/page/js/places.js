// Parses the address of a model, and picks a model's files from a list. Does not touch the DOM.

const HUB = "https://huggingface.co";

/** `org/model`: exactly two names. The package parses it the same way. */
const REPOSITORY = /^[A-Za-z0-9][\w.-]*\/[A-Za-z0-9][\w.-]*$/;

/**
 * Parses an address into `{source, revision, base, label, from}`. `source` and `revision` are for the package; names of
 * single files are relative to `base`. Relative addresses are resolved against `here`, the page's URL.
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

/** A hub repository, from its name or from the URL of its page, which is what people copy. */
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
  // On the hub, `blob` is the page about a file and `resolve` is the file.
  if (url.origin === HUB) url.pathname = url.pathname.replace(/^(\/[^/]+\/[^/]+)\/blob\//, "$1/resolve/");
  return url;
}

/** Whether a file can be a shard that an index names. */
export const isShard = (path) => /\.safetensors$/i.test(path);

/**
 * A checkpoint's files by name, from `[path, file]` pairs. Its folder is the uppermost one with a config.json, or else
 * with any file. From subfolders of that folder, only shards are taken.
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
