// The demo page in browsers. One process with one browser of a kind, because each of these pages keeps a processor busy.
import { after } from "node:test";
import { closeAll, missing, missingFirefox } from "./support.mjs";

if (missing) console.log(`skipped: ${missing}`);
if (missingFirefox) console.log(`skipped: ${missingFirefox}`);

// First, so that what was started is ended too where one of these cannot be loaded.
after(closeAll);
await import("./visit.mjs");
await import("./ways.mjs");
await import("./unhappy.mjs");
await import("./webgpu.mjs");
await import("./accessible.mjs");
await import("./firefox.mjs");
