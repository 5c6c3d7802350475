/** Validation, and comparison of two models. */
import type { HostFunctions } from "../wire.js";
import { LowbitError } from "../errors.js";
import type { Context } from "./context.js";
import { unlessAborted } from "./jobs.js";

type Judging = Pick<HostFunctions, "validate" | "compare">;

export function judging({ platform, modules, jobs, checkpoints }: Context): Judging {
  return {
    validate: (id, a, b, request) =>
      jobs.run(id, (job) =>
        checkpoints.use(job, [a, b], async (original, quantized) => {
          const engine = await unlessAborted(job.signal, () => modules.withQuantizer());
          const codec = await checkpoints.tokenizer(job, original);
          // Many quantized folders have no tokenizer of their own.
          const other = await checkpoints.tokenizer(job, quantized).catch((error: unknown) => {
            if (error instanceof LowbitError && error.code === "not_found") return undefined;
            throw error;
          });
          await modules.forDevice(request);
          const scratch = await platform.scratch();
          try {
            const control = jobs.control(id, job, original.readers);
            return await engine.validate(
              original.handle, quantized.handle, request, codec, other, scratch, control,
            );
          } finally {
            await scratch.dispose();
          }
        }),
      ),
    compare: (id, a, b, request) =>
      jobs.run(id, (job) =>
        checkpoints.use(job, [a, b], async (first, second) => {
          const engine = await unlessAborted(job.signal, () => modules.withQuantizer());
          const [codecA, codecB] = [await checkpoints.tokenizer(job, first), await checkpoints.tokenizer(job, second)];
          await modules.forDevice(request);
          const control = jobs.control(id, job, first.readers);
          return engine.compare(
            first.handle, second.handle, request, codecA, codecB, control,
          );
        }),
      ),
  };
}
