/** Exports of every entry point besides its functions. */
export { Checkpoint, Output } from "./client/checkpoint.js";
export { Engine, type AutoResult, type DownloadCache } from "./client/engine.js";
export { Generation } from "./client/generation.js";
export { Model } from "./client/model.js";
export { fileText } from "./documents.js";
export { LowbitError, type ErrorCode } from "./errors.js";
export type {
  Activations, CalibrationRequest, ColumnOrder, DeviceChoice as Device, Format, GgufType, Limits, Method, TextsOptions,
} from "./options.generated.js";
export type * from "./types.js";
export type { ObjectSchema, Tool } from "./tools.js";
