//! `xtask-bindgen MODULE.wasm FOLDER NAME`: writes the JavaScript of a module beside a copy of it without the bindings'
//! own sections. A program of its own, so that only the tasks that build the npm package compile the generator.

use std::process::ExitCode;
use wasm_bindgen_cli_support::Bindgen;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [module, folder, name] = args.as_slice() else {
        eprintln!("usage: xtask-bindgen MODULE.wasm FOLDER NAME");
        return ExitCode::FAILURE;
    };
    let mut bindgen = Bindgen::new();
    let set_up = bindgen.input_path(module).out_name(name).typescript(true).web(true);
    match set_up.and_then(|bindgen| bindgen.generate(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {module}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
