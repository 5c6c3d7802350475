/** The worker in browsers. */
import { serve } from "./host.js";
import { platform } from "./browser-host.js";

serve(
  {
    post: (message) => postMessage(message),
    listen: (listener) => addEventListener("message", (event) => listener((event as MessageEvent).data)),
  },
  platform,
);
