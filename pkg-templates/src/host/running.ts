/** Loading models, and what they are asked: text, answers, logits, perplexity. */
import type { ChatMessage, Device, GenerateResult, ModelInfo } from "../types.js";
import type { HostFunctions } from "../wire.js";
import type { Context } from "./context.js";
import type { Job } from "./jobs.js";
import type { HeldModel } from "./models.js";
import type { Tokenizer } from "./modules.js";

type Running = Pick<HostFunctions, "load" | "generate" | "chat" | "logits" | "perplexity" | "disposeModel">;

export function running({ caller, modules, jobs, checkpoints, models }: Context): Running {
  const generate = (
    job: Job, model: HeldModel, codec: Tokenizer, ids: Uint32Array, chat: boolean, request: object,
  ): Promise<GenerateResult> => {
    const control = jobs.control(job, model.checkpoint.meter);
    const say = (piece: { token_id: number; text: string }) => caller().piece(job.id, piece.text, piece.token_id);
    return models.queued(model, job, () =>
      model.handle.generate(ids, chat, request, codec as never, say, control as never),
    );
  };
  return {
    load: (job, id, request) =>
      jobs.run(job, async (state) => {
        const checkpoint = checkpoints.get(id);
        await modules.forDevice(request as { device?: Device });
        const control = jobs.control(state, checkpoint.meter);
        const handle = await modules.engine.Model.load(checkpoint.handle, request, control as never);
        const model = models.keep(handle, checkpoint);
        const chat = await checkpoints.tokenizer(checkpoint).then((codec) => codec.hasChatTemplate, () => false);
        return { id: model, info: handle.about() as ModelInfo, chat };
      }),
    generate: (job, id, prompt, request) =>
      jobs.run(job, async (state) => {
        const model = models.get(id);
        const codec = await checkpoints.tokenizer(model.checkpoint);
        const ids = typeof prompt === "string" ? codec.encodePrompt(prompt) : prompt;
        return generate(state, model, codec, ids, false, request);
      }),
    chat: (job, id, messages, request) =>
      jobs.run(job, async (state) => {
        const model = models.get(id);
        const codec = await checkpoints.tokenizer(model.checkpoint);
        // The template spells out every special token.
        const ids = codec.encode(codec.applyChatTemplate(messages as ChatMessage[]));
        return generate(state, model, codec, ids, true, request);
      }),
    logits: (job, id, ids) =>
      jobs.run(job, async (state) => {
        const model = models.get(id);
        const control = jobs.control(state, model.checkpoint.meter);
        return models.queued(model, state, () => model.handle.logits(ids, control as never));
      }),
    perplexity: (job, id, request) =>
      jobs.run(job, async (state) => {
        const model = models.get(id);
        const codec = await checkpoints.tokenizer(model.checkpoint);
        const control = jobs.control(state, model.checkpoint.meter);
        return models.queued(model, state, () => model.handle.perplexity(request, codec as never, control as never));
      }),
    disposeModel: (id) => models.dispose(id),
  };
}
