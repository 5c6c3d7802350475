// Local HTTP servers for tests.
import { createServer } from "node:http";
import { after } from "node:test";

/** Starts a local HTTP server that calls `answer(request, response)`. It is closed after the tests. */
export async function serve(answer) {
  const server = createServer(answer);
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  // Open keep-alive connections must not delay the end of the tests.
  server.unref();
  after(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${server.address().port}`;
}

/** Answers with `bytes`, or with the requested range of them, like a real server. */
export function sendRange(request, response, bytes, headers = {}) {
  const asked = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "");
  const ifRange = request.headers["if-range"];
  if (asked === null || (ifRange !== undefined && ifRange !== headers.etag)) {
    response.writeHead(200, { "content-length": bytes.length, "accept-ranges": "bytes", ...headers }).end(bytes);
    return;
  }
  const [start, end] = [Number(asked[1]), Math.min(Number(asked[2]), bytes.length - 1)];
  if (start >= bytes.length) {
    response.writeHead(416, { "content-range": `bytes */${bytes.length}`, ...headers }).end();
    return;
  }
  const range = { "content-range": `bytes ${start}-${end}/${bytes.length}`, "content-length": end - start + 1 };
  response.writeHead(206, { ...range, ...headers }).end(bytes.subarray(start, end + 1));
}
