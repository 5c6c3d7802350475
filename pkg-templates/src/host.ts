/**
 * The engine side: holds the WebAssembly modules, checkpoints and models, and serves the caller side's requests.
 *
 * Runs in a worker or in the caller's own thread. `HostPlatform` holds the differences between runtimes. `host/` has
 * the functions by topic, and their shared state. Not here: the caller's objects (`client/`).
 */
import * as cache from "./cache.js";
import { asLowbitError, type LowbitError } from "./errors.js";
import { Checkpoints } from "./host/checkpoints.js";
import type { Context } from "./host/context.js";
import { Jobs } from "./host/jobs.js";
import { judging } from "./host/judging.js";
import { Models } from "./host/models.js";
import { Modules } from "./host/modules.js";
import { opening } from "./host/opening.js";
import { running } from "./host/running.js";
import { writing } from "./host/writing.js";
import type { HostPlatform, Port } from "./platform.js";
import { connect, type ClientFunctions, type HostFunctions } from "./wire.js";

/** Serves one connection. */
export function serve(port: Port, platform: HostPlatform): void {
  const modules = new Modules(platform);
  const jobs = new Jobs(platform, () => caller);
  const [checkpoints, models] = [new Checkpoints(modules), new Models()];
  const functions = hostFunctions({ platform, caller: () => caller, modules, jobs, checkpoints, models });
  const caller: ClientFunctions = connect<ClientFunctions, HostFunctions>(port, guarded(functions));
}

function hostFunctions(context: Context): HostFunctions {
  const { platform, modules, jobs, checkpoints, models } = context;
  return {
    use: async (given) => modules.use(given),
    ...opening(context),
    ...writing(context),
    ...running(context),
    ...judging(context),
    capabilities: async () => {
      const { engine, build, memory } = await modules.ready();
      await modules.prepareGpu().catch(() => {});
      const devices = await engine.devices();
      return { ...devices, engine: build, memory: memory.buffer.byteLength };
    },
    listCache: async () => {
      const store = await platform.store();
      return store === undefined ? [] : cache.list(store);
    },
    deleteCache: async (url) => {
      const store = await platform.store();
      if (store === undefined) return;
      if (url !== undefined) return cache.forget(store, url);
      await Promise.all((await store.keys()).map((key) => store.delete(key)));
    },
    abort: async (job) => jobs.abort(job),
    end: async () => {
      await jobs.end();
      models.end();
      checkpoints.end();
    },
  };
}

/** Why this thread's modules are unusable; `undefined` while they work. */
let broken: LowbitError | undefined;

/** Converts failures to `LowbitError`. After an `internal` one, every call fails with it. */
function guarded(functions: HostFunctions): HostFunctions {
  const each = Object.entries(functions).map(([name, run]) => [
    name,
    async (...args: unknown[]) => {
      try {
        if (broken !== undefined) throw broken;
        return await (run as (...args: unknown[]) => Promise<unknown>)(...args);
      } catch (error) {
        const known = asLowbitError(error);
        if (known.code === "internal") broken = known;
        throw known;
      }
    },
  ]);
  return Object.fromEntries(each) as HostFunctions;
}
