/** Entry point of the worker in Node, Deno and Bun. */
import { parentPort } from "node:worker_threads";
import { serve } from "./host.js";
import { platform } from "./node-host.js";
import { envelope } from "./workers.js";

const port = parentPort;
if (port === null) throw new Error("this file runs in a worker");
serve(
  {
    post: (message) => port.postMessage(envelope.seal(message)),
    listen: (listener) => void port.on("message", (sealed) => listener(envelope.open(sealed))),
  },
  platform,
);
