// The demo page in a browser. One process with one browser at a time, because each of these pages keeps a processor busy.
import { after } from "node:test";
import { closeAll, missing } from "./support.mjs";

if (missing) console.log(`skipped: ${missing}`);

await import("./visit.mjs");
await import("./ways.mjs");
await import("./unhappy.mjs");
await import("./accessible.mjs");
after(closeAll);
