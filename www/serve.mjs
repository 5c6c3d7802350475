// Serves the demo page from this machine, with the headers that a host should send.
//
// usage: node serve.mjs --package DIR [--out DIR] [--port 8000] [--host 127.0.0.1]
import { createServer } from "node:http";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import sirv from "sirv";
import { assemble, policy } from "./site.mjs";

/** Headers of every file. The policy is the page's own plus `frame-ancestors`, which only a header can set. */
export function headers() {
  return {
    "Content-Security-Policy": `${policy()}; frame-ancestors 'none'`,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
  };
}

/** Serves the folder `root`. Returns the URL and a function that stops the server. Port 0 picks a free port. */
export async function serve({ root, port = 0, host = "127.0.0.1" }) {
  const always = Object.entries(headers());
  const files = sirv(root, {
    etag: true,
    brotli: true,
    setHeaders: (response) => always.forEach(([name, value]) => response.setHeader(name, value)),
  });
  const server = createServer((request, response) => {
    files(request, response, () => {
      response.writeHead(404, { "content-type": "text/plain; charset=utf-8", ...headers() });
      response.end("no such file\n");
    });
  });
  await new Promise((listening, failed) => server.once("error", failed).listen(port, host, listening));
  const close = () => {
    server.closeAllConnections();
    return new Promise((closed) => server.close(closed));
  };
  return { url: `http://${host}:${server.address().port}/`, close };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({
    options: {
      package: { type: "string" },
      out: { type: "string", default: fileURLToPath(new URL("../target/site", import.meta.url)) },
      port: { type: "string", default: "8000" },
      host: { type: "string", default: "127.0.0.1" },
    },
  });
  if (values.package === undefined) {
    console.error("usage: node serve.mjs --package DIR [--out DIR] [--port 8000] [--host 127.0.0.1]");
    process.exit(2);
  }
  const root = assemble({ package: resolve(values.package), out: resolve(values.out), compress: true });
  const { url } = await serve({ root, port: Number(values.port), host: values.host });
  console.log(`${url} (${root}); Ctrl-C stops it`);
}
