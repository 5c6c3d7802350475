/** Runs the engine in the page's own thread, for pages without workers. */
import { serve } from "./host.js";
import { platform } from "./browser-host.js";
import type { Port } from "./platform.js";

export function start(port: Port): void {
  serve(port, platform);
}
