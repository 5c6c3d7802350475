#!/usr/bin/env node
/**
 * The `lowbit` command in Node: starts `cli.wasm`, which is the native command's own sources, with the arguments, files and terminal of
 * this process. Options, messages and exit codes are the module's.
 */
import { existsSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { isatty } from "node:tty";

/** The exit codes of a module that could not go on: out of memory is bad input, as it is natively; the other is that of a panic. */
const OUT_OF_MEMORY = 2;
const BROKEN = 101;

/** `node:wasi`, without the word that it is experimental: whoever types `lowbit` cannot do anything about it. Other warnings pass. */
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

/** A path as the module spells it. Its paths begin with `/`, so a drive of Windows is a folder of the root. */
function inModule(path: string): string {
  if (process.platform !== "win32" || !/^[A-Za-z]:[\\/]/.test(path)) return path;
  return `/${path[0]!.toUpperCase()}${path.slice(1).replaceAll("\\", "/")}`;
}

/** An argument that is a path, or an option with one, as the module spells it. */
function argument(text: string): string {
  const [, option = "", value = ""] = /^(--?[\w-]+=)?(.*)$/s.exec(text) ?? [];
  return option + inModule(value);
}

/** Every file of this machine. */
function preopens(): Record<string, string> {
  if (process.platform !== "win32") return { "/": "/" };
  const drives = [..."ABCDEFGHIJKLMNOPQRSTUVWXYZ"].filter((letter) => existsSync(`${letter}:\\`));
  return Object.fromEntries(drives.map((letter) => [`/${letter}:`, `${letter}:\\`]));
}

/** The environment, with what a module cannot ask the system for. */
function environment(): NodeJS.ProcessEnv {
  // The streams are only asked where they are terminals: opening a pipe here would change how the module's writes to it behave.
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
 * What the module calls, each by way of JavaScript: those calls that Node lets a module make directly may collect garbage where V8 does
 * not expect it, and then the process crashes (nodejs/node, issues 46777 and 53087).
 */
function indirect(calls: object): WebAssembly.ModuleImports {
  return Object.fromEntries(Object.entries(calls as Record<string, Call>).map(([name, call]): [string, Call] => [name, (...args) => call(...args)]));
}

/** Runs the module to its end; its exit code. */
async function main(): Promise<number> {
  const { WASI } = await wasiModule();
  const args = ["lowbit", ...process.argv.slice(2).map(argument)];
  const wasi = new WASI({ version: "preview1", args, env: environment(), preopens: preopens(), returnOnExit: true });
  const module = await WebAssembly.compile(readFileSync(new URL("./cli.wasm", import.meta.url)));
  const instance = await WebAssembly.instantiate(module, { wasi_snapshot_preview1: indirect(wasi.wasiImport) });
  try {
    return wasi.start(instance);
  } catch (error) {
    // A panic has its message and its exit code. What is left of the module's own making is an allocation that was refused.
    if (!(error instanceof WebAssembly.RuntimeError) || error.message !== "unreachable") throw error;
    console.error("error: the work needs more memory than WebAssembly has, which is 4 GiB; the native command has no such limit");
    return OUT_OF_MEMORY;
  }
}

try {
  process.exitCode = await main();
} catch (error) {
  console.error(`error: the command broke: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = BROKEN;
}
