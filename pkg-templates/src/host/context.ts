/** Shared state of the engine side's functions. */
import type { HostPlatform } from "../platform.js";
import type { ClientFunctions } from "../wire.js";
import type { Checkpoints } from "./checkpoints.js";
import type { Jobs } from "./jobs.js";
import type { Models } from "./models.js";
import type { Modules } from "./modules.js";

export interface Context {
  readonly platform: HostPlatform;
  /** The functions of the caller side. */
  readonly caller: () => ClientFunctions;
  readonly modules: Modules;
  readonly jobs: Jobs;
  readonly checkpoints: Checkpoints;
  readonly models: Models;
}
