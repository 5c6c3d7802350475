/** What says how good models are: validation, and two of them side by side. */
import type { Device } from "../types.js";
import type { HostFunctions } from "../wire.js";
import type { Context } from "./context.js";

type Judging = Pick<HostFunctions, "validate" | "compare">;

export function judging({ platform, modules, jobs, checkpoints }: Context): Judging {
  return {
    validate: (job, a, b, request) =>
      jobs.run(job, async (state) => {
        const [original, quantized] = [checkpoints.get(a), checkpoints.get(b)];
        const codec = await checkpoints.tokenizer(original);
        await modules.forDevice(request as { device?: Device });
        const scratch = await platform.scratch();
        try {
          const control = jobs.control(state, original.meter);
          return await modules.engine.validate(
            original.handle, quantized.handle, request, codec as never, scratch as never, control as never,
          );
        } finally {
          await scratch.dispose();
        }
      }),
    compare: (job, a, b, request) =>
      jobs.run(job, async (state) => {
        const [first, second] = [checkpoints.get(a), checkpoints.get(b)];
        const codecs = [await checkpoints.tokenizer(first), await checkpoints.tokenizer(second)];
        await modules.forDevice(request as { device?: Device });
        const control = jobs.control(state, first.meter);
        return modules.engine.compare(
          first.handle, second.handle, request, codecs[0] as never, codecs[1] as never, control as never,
        );
      }),
  };
}
