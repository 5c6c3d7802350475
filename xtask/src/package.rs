//! `cargo xtask package`: builds the npm package in `target/package/lowbit` and as a tarball next to it.
//!
//! [`wasm`] builds the WebAssembly modules: those that JavaScript calls, and the command line. The package's
//! TypeScript, in `pkg-templates/src`, becomes one file for each entry point and declarations. Tests use `--fast`, which
//! skips size optimization.

mod wasm;

use crate::process::{Outcome, program, root, run as execute, step, target_dir};
use crate::setup;
use serde_json::{Map, Value};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// How the package is built.
#[derive(clap::Args, Clone, Copy)]
pub struct Options {
    /// Build quickly, for tests: larger modules with the kernel tests, sizes unchecked
    #[arg(long)]
    pub fast: bool,
}

/// The folder of the package's sources.
pub fn templates() -> PathBuf {
    root().join("pkg-templates")
}

/// The folder of the built WebAssembly modules and their JavaScript bindings.
pub fn modules() -> PathBuf {
    target_dir().join("package/modules")
}

/// Entry points of the package: for a page or a program, its worker, the engine in the caller's thread, and the command.
const BROWSER: [&str; 4] = ["index.browser", "worker.browser", "host.browser", "slim"];
const NODE: [&str; 4] = ["index.node", "worker.node", "host.node", "cli"];

/// Builds the package.
///
/// # Errors
/// The first failed step.
pub fn run(options: Options) -> Outcome {
    step("set-up", || {
        setup::system(setup::FOR_PACKAGE)?;
        setup::rust()
    })?;
    let folder = build(options)?;
    println!("{}", folder.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the package and returns its folder.
///
/// # Errors
/// The first failed step.
pub fn build(options: Options) -> Result<PathBuf, String> {
    let modules = modules();
    let folder = target_dir().join("package/lowbit");
    for module in wasm::MODULES {
        step(&format!("module {}", module.name), || wasm::build(&module, options.fast, &modules))?;
    }
    step("command line", || wasm::build_command(options.fast, &modules))?;
    step("npm packages", || install(&templates()))?;
    step("package", || assemble(&modules, &folder, options.fast))?;
    // A package that is too large is completed all the same; the task fails at its end.
    let sizes = if options.fast { Ok(()) } else { step("sizes", || sizes(&folder)) };
    step("tarball", || {
        let mut pack = program("npm", &["pack", "--silent", "--pack-destination"]);
        execute({
            pack.arg(target_dir().join("package")).current_dir(&folder);
            pack
        })
    })?;
    sizes?;
    Ok(folder)
}

/// Installs a folder's npm packages from its `package-lock.json`, unless that is done.
pub fn install(folder: &Path) -> Result<(), String> {
    let stamp = folder.join("node_modules/.lowbit-installed");
    let wanted = read(&folder.join("package-lock.json"))?;
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    let mut npm = program("npm", &["ci", "--no-audit", "--no-fund", "--ignore-scripts"]);
    npm.current_dir(folder);
    execute(npm)?;
    write(&stamp, &wanted)
}

/// Runs `npm pack` and returns the tarball.
pub fn tarball() -> PathBuf {
    target_dir().join(concat!("package/lowbit-", env!("CARGO_PKG_VERSION"), ".tgz"))
}

fn assemble(modules: &Path, folder: &Path, fast: bool) -> Result<(), String> {
    let dist = folder.join("dist");
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    create(&dist)?;
    // TypeScript expects the bindings next to the sources that import them.
    let bindings = templates().join("src/wasm");
    create(&bindings)?;
    for entry in fs::read_dir(modules).map_err(|error| format!("{}: {error}", modules.display()))? {
        let path = entry.map_err(|error| error.to_string())?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".wasm") {
            copy(&path, &dist.join(&name))?;
        } else if !name.ends_with(".wasm.d.ts") {
            copy(&path, &bindings.join(&name))?;
        }
    }
    // Both builds have the same sources. Declarations of its own would make the types differ nominally.
    write(
        &bindings.join("engine_relaxed.d.ts"),
        "export * from \"./engine.js\";\nexport { default } from \"./engine.js\";\n",
    )?;
    let of_quantizer = wasm::OF_QUANTIZER.map(|name| format!("\"{name}\"")).join(" | ");
    write(
        &bindings.join("quantizer.d.ts"),
        &format!(
            "/** What of the engine's bindings needs the quantizer. */\nexport type OfQuantizer = {of_quantizer};\n"
        ),
    )?;
    bundle(&dist, &BROWSER, &["--minify", "--external:./host.browser.js"])?;
    bundle(&dist, &NODE, &["--platform=node", "--external:./host.node.js"])?;
    let mut tsc = tool("tsc", &["--project", ".", "--emitDeclarationOnly", "--outDir"]);
    tsc.arg(&dist);
    execute(tsc)?;
    publishable(&folder.join("package.json"), fast)?;
    copy(&templates().join("README.md"), &folder.join("README.md"))?;
    for licence in ["LICENSE-APACHE", "LICENSE-MIT"] {
        copy(&root().join(licence), &folder.join(licence))?;
    }
    // Licences of the bundled libraries.
    copy(&templates().join("node_modules/birpc/LICENSE"), &folder.join("licenses/birpc.txt"))?;
    copy(
        &templates().join("node_modules/wasm-feature-detect/LICENSE"),
        &folder.join("licenses/wasm-feature-detect.txt"),
    )
}

fn bundle(dist: &Path, entries: &[&str], arguments: &[&str]) -> Result<(), String> {
    let mut esbuild =
        tool("esbuild", &["--bundle", "--format=esm", "--target=es2022", "--log-level=warning"]);
    esbuild.args(arguments).args(entries.iter().map(|entry| format!("src/{entry}.ts")));
    esbuild.arg(format!("--outdir={}", dist.display()));
    execute(esbuild)
}

/// The published manifest, without build-only fields. A quick build is marked as one.
fn publishable(to: &Path, fast: bool) -> Result<(), String> {
    let text = read(&templates().join("package.json"))?;
    let mut manifest: Map<String, Value> =
        serde_json::from_str(&text).map_err(|error| format!("package.json: {error}"))?;
    for key in ["private", "devDependencies", "scripts"] {
        manifest.shift_remove(key);
    }
    manifest.insert("version".into(), env!("CARGO_PKG_VERSION").into());
    if fast {
        // Size tests check this mark.
        manifest.insert("optimized".into(), false.into());
    }
    let text = serde_json::to_string_pretty(&manifest).map_err(|error| error.to_string())?;
    write(to, &(text + "\n"))
}

/// Writes the compressed sizes of what a page loads into the README, and fails above the budget.
fn sizes(folder: &Path) -> Result<(), String> {
    let mut node = program("node", &["pkg-templates/sizes.mjs"]);
    node.arg(folder);
    execute(node)
}

/// A program from `pkg-templates/node_modules`, run in `pkg-templates`.
pub fn tool(name: &str, arguments: &[&str]) -> std::process::Command {
    let suffix = if cfg!(windows) { ".cmd" } else { "" };
    let path = templates().join("node_modules/.bin").join(format!("{name}{suffix}"));
    let mut command = program(path, arguments);
    command.current_dir(templates());
    command
}

pub(crate) fn create(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    to.parent().map_or(Ok(()), create)?;
    fs::copy(from, to).map(drop).map_err(|error| format!("{}: {error}", from.display()))
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
