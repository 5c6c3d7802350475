/** Opening checkpoints, and what is asked of them before any weight is read. */
import type { HostFunctions } from "../wire.js";
import type { Context } from "./context.js";
import { stopIfAborted, type Meter } from "./jobs.js";
import { folderOf, openSource } from "./sources.js";

type Opening = Pick<
  HostFunctions, "open" | "plan" | "planParameters" | "files" | "encode" | "decode" | "disposeCheckpoint"
>;

export function opening({ platform, caller, modules, jobs, checkpoints }: Context): Opening {
  return {
    open: (job, source, tokenizer, options) =>
      jobs.run(job, async (state) => {
        await modules.ready();
        const meter: Meter = { bytes: 0, opening: state };
        const other = tokenizer && (await openSource(tokenizer, platform, caller(), meter));
        const opened = await openSource(source, platform, caller(), meter);
        const { Checkpoint } = modules.engine;
        const handle = "file" in opened
          ? await Checkpoint.openGguf(opened.file as never)
          : await Checkpoint.open(opened.folder as never, options);
        stopIfAborted(state);
        delete meter.opening;
        return checkpoints.keep(handle, meter, other && folderOf(other));
      }),
    plan: async (id, options) => checkpoints.get(id).handle.plan(options),
    planParameters: async (parameters, options) => {
      await modules.ready();
      return modules.engine.planParameters(parameters, options);
    },
    files: async (folder) => checkpoints.files(folder),
    encode: async (id, string) => (await checkpoints.tokenizer(checkpoints.get(id))).encodePrompt(string),
    decode: async (id, ids) => (await checkpoints.tokenizer(checkpoints.get(id))).decode(ids),
    disposeCheckpoint: (id) => checkpoints.dispose(id),
  };
}
