// Runs all browser tests of the demo page in one process, with one browser of each kind: each page keeps a processor
// busy.
import { after } from "node:test";
import { closeAll, missing, missingFirefox } from "./support.mjs";

if (missing) console.log(`skipped: ${missing}`);
if (missingFirefox) console.log(`skipped: ${missingFirefox}`);

// Before the imports, so that servers and browsers are closed even if one of these files fails to load.
after(closeAll);
await import("./visit.mjs");
await import("./ways.mjs");
await import("./unhappy.mjs");
await import("./webgpu.mjs");
await import("./accessible.mjs");
await import("./firefox.mjs");
