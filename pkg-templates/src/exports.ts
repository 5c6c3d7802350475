/** What every entry point exports beside its functions. */
export { Checkpoint, Engine, Generation, Model, Output, type AutoResult, type DownloadCache } from "./client.js";
export { LowbitError, type ErrorCode } from "./errors.js";
export type * from "./types.js";
export type { ObjectSchema, Tool } from "./tools.js";
