#!/usr/bin/env node
/**
 * The `lowbit` command in Node. Starts `cli.wasm`, compiled from the native command's sources, with this process's
 * arguments, files and terminal. The module defines options, messages and exit codes.
 */
import { existsSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { isatty } from "node:tty";

/** Exit codes of a crashed module. Out of memory counts as bad input, as it does natively; the other is a panic's. */
const OUT_OF_MEMORY = 2;
const BROKEN = 101;

/**
 * Imports `node:wasi` without its warning that WASI is experimental, which a user cannot act on. Other warnings pass.
 */
async function wasiModule() {
  const { emitWarning } = process;
  process.emitWarning = ((warning: string | Error, ...rest: unknown[]) => {
    if (rest[0] === "ExperimentalWarning" && String(warning).startsWith("WASI ")) return;
    Reflect.apply(emitWarning, process, [warning, ...rest]);
  }) as typeof emitWarning;
  try {
    return await import("node:wasi");
  } finally {
    process.emitWarning = emitWarning;
  }
}

/** A path in the module's form. Its paths begin with `/`, so a Windows drive is a folder in the root. */
function inModule(path: string): string {
  if (process.platform !== "win32" || !/^[A-Za-z]:[\\/]/.test(path)) return path;
  return `/${path[0]!.toUpperCase()}${path.slice(1).replaceAll("\\", "/")}`;
}

/** An argument with its path, if it has one, in the module's form: a path, or an option and a path. */
function argument(text: string): string {
  const [, option = "", value = ""] = /^(--?[\w-]+=)?(.*)$/s.exec(text) ?? [];
  return option + inModule(value);
}

/** All files of this machine. */
function preopens(): Record<string, string> {
  if (process.platform !== "win32") return { "/": "/" };
  const drives = [..."ABCDEFGHIJKLMNOPQRSTUVWXYZ"].filter((letter) => existsSync(`${letter}:\\`));
  return Object.fromEntries(drives.map((letter) => [`/${letter}:`, `${letter}:\\`]));
}

/** The environment, extended by values that a WASI module cannot query. */
function environment(): NodeJS.ProcessEnv {
  // Only a terminal's stream is opened: opening a pipe here would change how the module's writes to it behave.
  const terminal = isatty(1) ? process.stdout : isatty(2) ? process.stderr : undefined;
  return {
    ...process.env,
    PWD: inModule(process.cwd()),
    TMPDIR: inModule(tmpdir()),
    ...(terminal?.columns && { COLUMNS: String(terminal.columns) }),
  };
}

type Call = (...args: unknown[]) => unknown;

/**
 * Wraps each import in a JavaScript function. Node's direct calls from WebAssembly may collect garbage where V8 does
 * not expect it, which crashes the process (nodejs/node, issues 46777 and 53087).
 */
function indirect(calls: object): WebAssembly.ModuleImports {
  return Object.fromEntries(Object.entries(calls as Record<string, Call>).map(([name, call]): [string, Call] => [name, (...args) => call(...args)]));
}

/** Runs the module to its end and returns its exit code. */
async function main(): Promise<number> {
  const { WASI } = await wasiModule();
  const args = ["lowbit", ...process.argv.slice(2).map(argument)];
  const wasi = new WASI({ version: "preview1", args, env: environment(), preopens: preopens(), returnOnExit: true });
  const module = await WebAssembly.compile(readFileSync(new URL("./cli.wasm", import.meta.url)));
  const instance = await WebAssembly.instantiate(module, { wasi_snapshot_preview1: indirect(wasi.wasiImport) });
  try {
    return wasi.start(instance);
  } catch (error) {
    // A panic prints its own message and exits with its own code. So `unreachable` here means a failed allocation.
    if (!(error instanceof WebAssembly.RuntimeError) || error.message !== "unreachable") throw error;
    console.error("error: the work needs more memory than WebAssembly has (4 GiB); the native command has no such limit");
    return OUT_OF_MEMORY;
  }
}

try {
  process.exitCode = await main();
} catch (error) {
  console.error(`error: the command crashed: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = BROKEN;
}
