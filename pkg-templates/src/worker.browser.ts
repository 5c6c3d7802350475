/** Entry point of the worker in browsers. */
import { serve } from "./host.js";
import { platform } from "./browser-host.js";
import { envelope } from "./workers.js";

serve(
  {
    post: (message) => postMessage(envelope.seal(message)),
    listen: (listener) => addEventListener("message", (event) => listener(envelope.open((event as MessageEvent).data))),
  },
  platform,
);
