/** What every entry point exports beside its functions. */
export { Checkpoint, Engine, Generation, Model, Output } from "./client.js";
export { LowbitError, type ErrorCode } from "./errors.js";
export type * from "./types.js";
