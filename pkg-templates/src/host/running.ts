/** Loads models, and runs them: generation, chat, logits, perplexity. */
import type { GenerateOptions } from "../options.generated.js";
import type { GenerateResult, Piece } from "../types.js";
import type { HostFunctions } from "../wire.js";
import type { Context } from "./context.js";
import type { Job } from "./jobs.js";
import type { HeldModel } from "./models.js";
import type { Tokenizer } from "./modules.js";

type Running = Pick<HostFunctions, "load" | "generate" | "chat" | "logits" | "perplexity" | "disposeModel">;

export function running({ caller, modules, jobs, checkpoints, models }: Context): Running {
  const generate = (
    id: number, job: Job, model: HeldModel, codec: Tokenizer, ids: Uint32Array, chat: boolean, request: GenerateOptions,
  ): Promise<GenerateResult> => {
    const control = jobs.control(id, job, model.checkpoint.readers);
    const say = (piece: Piece) => caller().piece(id, piece.text, piece.tokenId);
    return models.queued(model, job, () =>
      model.handle.generate(ids, chat, request, codec, say, control),
    );
  };
  return {
    load: (id, checkpoint, request) =>
      jobs.run(id, (job) =>
        checkpoints.use(job, [checkpoint], async (source) => {
          await modules.forDevice(request);
          const control = jobs.control(id, job, source.readers);
          const handle = await modules.engine.Model.load(source.handle, request, control);
          const info = handle.about();
          const model = models.keep(handle, source);
          const chat = await checkpoints.tokenizer(job, source).then((codec) => codec.hasChatTemplate, () => false);
          return { id: model, info, chat };
        }),
      ),
    generate: (id, model, prompt, request) =>
      jobs.run(id, (job) =>
        models.use(job, model, async (held) => {
          const codec = await checkpoints.tokenizer(job, held.checkpoint);
          const ids = typeof prompt === "string" ? codec.encodePrompt(prompt) : prompt;
          return generate(id, job, held, codec, ids, false, request);
        }),
      ),
    chat: (id, model, messages, request) =>
      jobs.run(id, (job) =>
        models.use(job, model, async (held) => {
          const codec = await checkpoints.tokenizer(job, held.checkpoint);
          // The template contains all special tokens.
          const ids = codec.encode(codec.applyChatTemplate(messages));
          return generate(id, job, held, codec, ids, true, request);
        }),
      ),
    logits: (id, model, ids) =>
      jobs.run(id, (job) =>
        models.use(job, model, (held) => {
          const control = jobs.control(id, job, held.checkpoint.readers);
          return models.queued(held, job, () => held.handle.logits(ids, control));
        }),
      ),
    perplexity: (id, model, request) =>
      jobs.run(id, (job) =>
        models.use(job, model, async (held) => {
          const codec = await checkpoints.tokenizer(job, held.checkpoint);
          const control = jobs.control(id, job, held.checkpoint.readers);
          return models.queued(held, job, () => held.handle.perplexity(request, codec, control));
        }),
      ),
    disposeModel: async (id) => models.dispose(id),
  };
}
