/** Opens checkpoints, and serves requests that read no weights: plans, files, tokenizers. */
import type { HostFunctions, TextOf } from "../wire.js";
import type { HeldCheckpoint } from "./checkpoints.js";
import type { Context } from "./context.js";
import { stopIfAborted, unlessAborted } from "./jobs.js";
import type { Tokenizer } from "./modules.js";
import { Readers } from "./readers.js";
import { folderOf, openSource } from "./sources.js";

type Opening = Pick<
  HostFunctions, "open" | "plan" | "planParameters" | "files" | "encode" | "decode" | "disposeCheckpoint"
>;

export function opening({ platform, caller, modules, jobs, checkpoints, models }: Context): Opening {
  /** Runs work with the tokenizer of a checkpoint, or of a model's checkpoint. */
  const withTokenizer = <T>(of: TextOf, work: (tokenizer: Tokenizer) => T): Promise<T> =>
    jobs.run(undefined, (job) => {
      const run = async (held: HeldCheckpoint) => work(await checkpoints.tokenizer(job, held));
      return "model" in of
        ? models.use(job, of.model, ({ checkpoint }) => run(checkpoint))
        : checkpoints.use(job, [of.checkpoint], run);
    });
  return {
    open: (id, source, tokenizer, request) =>
      jobs.run(id, async (job) => {
        await unlessAborted(job.signal, () => modules.ready());
        const readers = new Readers();
        return readers.during(job, async () => {
          const other = tokenizer && (await openSource(tokenizer, platform, caller(), readers));
          const opened = await openSource(source, platform, caller(), readers);
          const folder = other && folderOf(other);
          const { Checkpoint } = modules.engine;
          const handle = "file" in opened
            ? await Checkpoint.openGguf(opened.file, request)
            : await Checkpoint.open(opened.folder, request);
          try {
            stopIfAborted(job.signal);
            return checkpoints.keep(handle, readers, folder);
          } catch (error) {
            handle.free();
            throw error;
          }
        });
      }),
    plan: async (id, request) => checkpoints.get(id).handle.plan(request),
    planParameters: async (parameters, request) => {
      const { engine } = await modules.ready();
      return engine.planParameters(parameters, request);
    },
    files: async (folder) => checkpoints.files(folder),
    encode: (of, string) => withTokenizer(of, (tokenizer) => tokenizer.encodePrompt(string)),
    decode: (of, ids) => withTokenizer(of, (tokenizer) => tokenizer.decode(ids)),
    disposeCheckpoint: async (id) => checkpoints.dispose(id),
  };
}
