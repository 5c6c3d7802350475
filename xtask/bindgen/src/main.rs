//! `xtask-bindgen MODULE.wasm FOLDER NAME [LATER EXPORT...]`: writes the JavaScript bindings of a module and a copy of it without the
//! bindings' sections. With `LATER` it splits the module, and the second part has what only the given exports need.
//! A separate program, so that only the tasks that build the npm package compile the generator.

mod links;
mod split;

use anyhow::{Context, Result};
use links::Links;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::{env, fs};
use walrus::{FunctionId, Module, ModuleConfig};
use wasm_bindgen_cli_support::Bindgen;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let [module, folder, name, later @ ..] = args.as_slice() else {
        eprintln!("usage: xtask-bindgen MODULE.wasm FOLDER NAME [LATER EXPORT...]");
        return ExitCode::FAILURE;
    };
    match bind(module, Path::new(folder), name, later) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {module}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bind(path: &str, folder: &Path, name: &str, later: &[String]) -> Result<()> {
    let bytes = fs::read(path)?;
    let mut bindgen = Bindgen::new();
    bindgen.typescript(true).web(true)?;
    let Some((later, exports)) = later.split_first() else {
        return bindgen.input_bytes(name, bytes).generate(folder);
    };
    let links = Links::read(&bytes)?;
    let (module, functions) = parse(&bytes)?;
    let mut output = bindgen.input_module(name, module).generate_output()?;
    output.emit(folder)?;
    let whole = std::mem::take(output.wasm_mut());
    let parts = split::split(whole, &links, &functions, |export| is_of(export, exports))?;
    for (name, bytes) in [(name, parts.first), (later, parts.later)] {
        fs::write(folder.join(format!("{name}_bg.wasm")), bytes)
            .with_context(|| format!("cannot write {name}"))?;
    }
    Ok(())
}

/// Reads a linked module without the relocation sections, and the mapping of function indices.
fn parse(bytes: &[u8]) -> Result<(Module, Vec<FunctionId>)> {
    let functions = Arc::new(Mutex::new(Vec::new()));
    let found = functions.clone();
    let mut config = ModuleConfig::new();
    config.on_parse(move |_, ids| {
        let mut found = found.lock().expect("nobody else holds it");
        found.extend((0..).map_while(|index| ids.get_func(index).ok()));
        Ok(())
    });
    let mut module = config.parse(bytes)?;
    for lists in ["linking", "reloc.CODE", "reloc.DATA"] {
        module.customs.remove_raw(lists);
    }
    let functions = functions.lock().expect("nobody else holds it").clone();
    Ok((module, functions))
}

/// Whether an export is a function, or a method of a class, with one of these JavaScript names.
fn is_of(export: &str, names: &[String]) -> bool {
    names.iter().any(|name| {
        let class = name.to_lowercase();
        export == name || export.starts_with(&format!("{class}_")) || export == format!("__wbg_{class}_free")
    })
}
