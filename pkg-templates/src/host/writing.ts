/** Work that writes checkpoints: quantizing, converting, the way back, and searches. */
import { LowbitError } from "../errors.js";
import type { AttemptSummary, AutoEvent, Device, QuantizationRecord } from "../types.js";
import type { HostFunctions, Searched } from "../wire.js";
import type { Context } from "./context.js";
import { openPlace, type Place } from "./places.js";
import { readJson } from "./sources.js";

type Writing = Pick<HostFunctions, "quantize" | "dequantize" | "convert" | "auto">;

export function writing({ platform, caller, modules, jobs, checkpoints }: Context): Writing {
  return {
    quantize: (id, checkpoint, request, target) =>
      jobs.run(id, (job) =>
        checkpoints.use(job, [checkpoint], async (source) => {
          const wanted = request as { calibration?: { texts?: unknown[] }; device?: Device };
          const codec = wanted.calibration?.texts?.length ? await checkpoints.tokenizer(job, source) : undefined;
          if (wanted.calibration !== undefined) await modules.forDevice(wanted);
          const place = await openPlace(target, platform, caller(), job);
          const scratch = await platform.scratch();
          try {
            const control = jobs.control(id, job, source.readers);
            const summary = await modules.engine.quantize(
              source.handle, request, codec as never, place.target as never, place.existing as never, scratch as never,
              control as never,
            );
            return await checkpoints.written(summary, place);
          } finally {
            await scratch.dispose();
          }
        }),
      ),
    dequantize: (id, checkpoint, dtype, target) =>
      jobs.run(id, (job) =>
        checkpoints.use(job, [checkpoint], async (source) => {
          const place = await openPlace(target, platform, caller(), job);
          const control = jobs.control(id, job, source.readers);
          const summary = await modules.engine.dequantize(
            source.handle, dtype, place.target as never, place.existing as never, control as never,
          );
          return checkpoints.written(summary, place);
        }),
      ),
    convert: (id, checkpoint, request, target) =>
      jobs.run(id, (job) =>
        checkpoints.use(job, [checkpoint], async (source) => {
          const place = await openPlace(target, platform, caller(), job);
          const control = jobs.control(id, job, source.readers);
          const summary = await modules.engine.convert(
            source.handle, request, place.target as never, place.existing as never, control as never,
          );
          const { format, file } = request as { format?: string; file?: string };
          return checkpoints.written(summary, place, format === "gguf" ? (file ?? "model.gguf") : undefined);
        }),
      ),
    auto: (id, list, request, target) =>
      jobs.run(id, (job) =>
        checkpoints.use(job, list, async (...sources) => {
          await modules.forDevice(request as { device?: Device });
          const root = await openPlace(target, platform, caller(), job);
          if (!root.readable) {
            throw new LowbitError("invalid_argument", "a search reads what it wrote, so its target cannot be streams");
          }
          const places = new Map<string, Place>();
          const inside = async (name: string) => {
            const place = places.get(name) ?? (await root.inside(name));
            places.set(name, place);
            return place;
          };
          const outputs = {
            summary: root.target,
            create: async (name: string) => (await inside(name)).target,
            open: async (name: string) => (await inside(name)).existing,
          };
          const scratch = await platform.scratch();
          const search = new modules.engine.AutoJob();
          try {
            for (const source of sources) search.add(source.handle, (await checkpoints.tokenizer(job, source)) as never);
            const control = jobs.control(id, job, sources[0]?.readers);
            const tell = (event: AutoEvent) => caller().told(id, event);
            const outcome: Searched["outcome"] = await search.run(
              request, outputs as never, scratch as never, tell, control as never,
            );
            const attempts: Searched["attempts"] = [];
            for (const { attempt, bytes } of outcome.summary.variants) {
              const place = attempt && places.get(attempt.name);
              if (attempt === undefined || place === undefined) continue;
              const record = (await readJson(place.existing, "quantization_config.json")) as QuantizationRecord;
              const written = await checkpoints.written({ record, bytes } satisfies AttemptSummary, place);
              attempts.push({ name: attempt.name, written });
            }
            return { outcome, attempts };
          } finally {
            search.free();
            await scratch.dispose();
          }
        }),
      ),
  };
}
