//! Builds the library as WebAssembly modules with their JavaScript bindings, and the command as a WASI module.

use super::{copy, create, tool};
use crate::process::{cargo, run, target_dir};
use crate::setup::{WASI, WASM};
use std::fs;
use std::path::Path;

/// A part of a module that is loaded on demand and shares the module's memory.
pub struct Later {
    /// Its file is `NAME_bg.wasm`.
    pub name: &'static str,
    /// Exported functions and classes. The part contains what only these need.
    pub of: &'static [&'static str],
}

/// Exports of the quantizer, which writes and validates checkpoints.
pub const OF_QUANTIZER: [&str; 6] = ["quantize", "convert", "dequantize", "validate", "compare", "AutoJob"];

/// One module.
pub struct Module {
    /// Its files are `NAME.js`, `NAME.d.ts` and `NAME_bg.wasm`.
    pub name: &'static str,
    features: &'static str,
    /// Features of the module with the kernel tests.
    features_for_tests: &'static str,
    /// Target features besides simd128.
    target_features: Option<&'static str>,
    /// Its folder below the target folder. In a shared one the builds would invalidate each other.
    target: &'static str,
    later: Option<Later>,
}

/// The modules of the package.
pub const MODULES: [Module; 3] = [
    Module {
        name: "engine",
        features: "engine",
        features_for_tests: "kernel-tests",
        target_features: None,
        target: "",
        later: Some(Later { name: "quantizer", of: &OF_QUANTIZER }),
    },
    Module {
        name: "engine_relaxed",
        features: "engine",
        features_for_tests: "kernel-tests",
        target_features: Some("+relaxed-simd"),
        target: "relaxed",
        later: Some(Later { name: "quantizer_relaxed", of: &OF_QUANTIZER }),
    },
    Module {
        name: "tokenizer",
        features: "tokenizer-module",
        features_for_tests: "tokenizer-module",
        target_features: None,
        target: "tokenizer",
        later: None,
    },
];

/// The WebAssembly features that the optimizer may use, listed because `--all-features` includes some that browsers lack.
const OPTIMIZER_FEATURES: [&str; 8] = [
    "--enable-bulk-memory",
    "--enable-bulk-memory-opt",
    "--enable-nontrapping-float-to-int",
    "--enable-sign-ext",
    "--enable-mutable-globals",
    "--enable-reference-types",
    "--enable-multivalue",
    "--enable-simd",
];

/// The optimizer's passes. Compared with plain level 3, an engine decodes INT4 and INT8 a tenth faster and is 14 KB
/// smaller (brotli). Inlining functions with one caller makes functions that browsers' compilers optimize badly.
/// Similar functions compress better next to each other.
const OPTIMIZER_PASSES: [&str; 5] = [
    "-O2",
    "--one-caller-inline-max-function-size=0",
    "--reorder-functions-by-name",
    "--strip-debug",
    "--strip-producers",
];

/// Builds one module with its later part into `folder`. `fast`, for tests, optimizes less and includes the kernel tests.
///
/// # Errors
/// A program failed.
pub fn build(module: &Module, fast: bool, folder: &Path) -> Result<(), String> {
    create(folder)?;
    let profile = profile(fast);
    let mut build = cargo(&["rustc", "--package", "lowbit", "--lib", "--crate-type", "cdylib", "--quiet"]);
    build.args([
        "--target",
        WASM,
        "--profile",
        profile,
        "--no-default-features",
        "--features",
        if fast { module.features_for_tests } else { module.features },
    ]);
    let target = target_dir().join(module.target);
    if let Some(features) = module.target_features {
        build.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS", format!("-Ctarget-feature={features}"));
    }
    build.arg("--target-dir").arg(&target);
    build.arg("--");
    if module.later.is_some() {
        // The bindings' generator needs the linker's relocations to find what a part needs.
        build.arg("-Clink-arg=--emit-relocs");
    }
    if !fast {
        // Little inlining. Kernels mark what must be inlined.
        build.arg("-Cllvm-args=-inline-threshold=20");
        // Our own tokenizer code runs once for a file or a chat, so size counts.
        if module.name == "tokenizer" {
            build.arg("-Copt-level=s");
        }
    }
    run(build)?;
    let built = target.join(WASM).join(profile).join("lowbit.wasm");
    let mut bindgen = cargo(&["run", "--package", "xtask-bindgen", "--quiet", "--"]);
    bindgen.arg(&built).arg(folder).arg(module.name);
    let mut files = vec![module.name];
    if let Some(Later { name, of }) = module.later {
        bindgen.arg(name).args(of);
        files.push(name);
    }
    run(bindgen)?;
    if !fast {
        for name in files {
            optimize(&folder.join(format!("{name}_bg.wasm")), module.target_features.is_some())?;
        }
    }
    Ok(())
}

/// Builds the native command's sources, without GPU support, as `cli.wasm` in `folder`.
///
/// # Errors
/// A program failed.
pub fn build_command(fast: bool, folder: &Path) -> Result<(), String> {
    create(folder)?;
    let profile = profile(fast);
    let mut build = cargo(&["build", "--package", "lowbit", "--bin", "lowbit", "--quiet"]);
    build.args(["--target", WASI, "--profile", profile, "--no-default-features", "--features", "cli"]);
    build.arg("--target-dir").arg(target_dir());
    run(build)?;
    let to = folder.join("cli.wasm");
    copy(&target_dir().join(WASI).join(profile).join("lowbit.wasm"), &to)?;
    if fast { Ok(()) } else { optimize(&to, false) }
}

fn profile(fast: bool) -> &'static str {
    if fast { "wasm-test" } else { "wasm" }
}

fn optimize(path: &Path, relaxed: bool) -> Result<(), String> {
    super::install(&super::templates())?;
    let optimized = path.with_extension("opt");
    let mut wasm_opt = tool("wasm-opt", &OPTIMIZER_PASSES);
    wasm_opt.args(OPTIMIZER_FEATURES);
    if relaxed {
        wasm_opt.arg("--enable-relaxed-simd");
    }
    wasm_opt.arg(path).arg("-o").arg(&optimized);
    run(wasm_opt)?;
    fs::rename(&optimized, path).map_err(|error| format!("{}: {error}", optimized.display()))
}
