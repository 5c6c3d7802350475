/** Jobs that write checkpoints: quantize, dequantize, convert, and search. */
import { fromFile } from "../documents.js";
import { LowbitError } from "../errors.js";
import type { Format } from "../options.generated.js";
import type { AttemptSummary, AutoEvent, QuantizationRecord } from "../types.js";
import type { HostFunctions, Searched } from "../wire.js";
import type { Context } from "./context.js";
import { unlessAborted } from "./jobs.js";
import { openPlace, type Place } from "./places.js";
import { readJson } from "./sources.js";

type Writing = Pick<HostFunctions, "quantize" | "dequantize" | "convert" | "auto">;

export function writing({ platform, caller, modules, jobs, checkpoints }: Context): Writing {
  return {
    quantize: (id, checkpoint, request, kept, target) =>
      jobs.run(id, (job) =>
        checkpoints.use(job, [checkpoint], async (source) => {
          const engine = await unlessAborted(job.signal, () => modules.withQuantizer());
          const { calibration, format, file } = request;
          const codec = calibration?.texts?.length ? await checkpoints.tokenizer(job, source) : undefined;
          if (calibration !== undefined) await modules.forDevice(request);
          const place = await openPlace(target, platform, caller(), job);
          const scratch = kept === undefined ? await platform.scratch() : await platform.keptScratch(kept);
          try {
            const control = jobs.control(id, job, source.readers);
            const summary = await engine.quantize(
              source.handle, request, codec, place.target, scratch, kept !== undefined, control,
            );
            return await checkpoints.written(summary, place, ggufFile(format, file));
          } finally {
            await scratch.dispose();
          }
        }),
      ),
    dequantize: (id, checkpoint, original, request, target) =>
      jobs.run(id, (job) =>
        checkpoints.use(job, original === undefined ? [checkpoint] : [checkpoint, original], async (source, other) => {
          const engine = await unlessAborted(job.signal, () => modules.withQuantizer());
          const codec = request.texts === undefined ? undefined : await checkpoints.tokenizer(job, source);
          const place = await openPlace(target, platform, caller(), job);
          if (codec !== undefined && !place.readable) {
            throw new LowbitError("invalid_argument", "comparing predictions reads the output, so the target cannot be streams");
          }
          const control = jobs.control(id, job, source.readers);
          const summary = await engine.dequantize(
            source.handle, other?.handle.share(), request, codec, place.target, control,
          );
          return checkpoints.written(summary, place);
        }),
      ),
    convert: (id, checkpoint, request, target) =>
      jobs.run(id, (job) =>
        checkpoints.use(job, [checkpoint], async (source) => {
          const engine = await unlessAborted(job.signal, () => modules.withQuantizer());
          const place = await openPlace(target, platform, caller(), job);
          const control = jobs.control(id, job, source.readers);
          const summary = await engine.convert(source.handle, request, place.target, control);
          return checkpoints.written(summary, place, ggufFile(request.format, request.file));
        }),
      ),
    auto: (id, list, request, target) =>
      jobs.run(id, (job) =>
        checkpoints.use(job, list, async (...sources) => {
          const engine = await unlessAborted(job.signal, () => modules.withQuantizer());
          await modules.forDevice(request);
          const root = await openPlace(target, platform, caller(), job);
          if (!root.readable) {
            throw new LowbitError("invalid_argument", "a search reads its outputs, so its target cannot be streams");
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
          };
          const scratch = await platform.scratch();
          const search = new engine.AutoJob();
          try {
            for (const source of sources) search.add(source.handle, await checkpoints.tokenizer(job, source));
            const control = jobs.control(id, job, sources[0]?.readers);
            const tell = (event: AutoEvent) => caller().told(id, event);
            const outcome = await search.run(request, outputs, scratch, tell, control);
            const attempts: Searched["attempts"] = [];
            for (const { attempt, bytes } of outcome.summary.variants) {
              const place = attempt && places.get(attempt.name);
              if (attempt === undefined || place === undefined) continue;
              const file = await readJson(place.target.existing, "quantization_config.json");
              const record = fromFile(file) as QuantizationRecord;
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

/** The file name of a GGUF output; `undefined` for other formats. */
function ggufFile(format: Format | undefined, file: string | undefined): string | undefined {
  return format === "gguf" ? (file ?? "model.gguf") : undefined;
}
