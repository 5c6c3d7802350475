/** Runs the engine in the caller's own thread. */
import { serve } from "./host.js";
import { platform } from "./node-host.js";
import type { Port } from "./platform.js";

export function start(port: Port): void {
  serve(port, platform);
}
