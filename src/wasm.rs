//! JavaScript bindings for the WebAssembly modules of the npm package, with little logic of their own.
//!
//! Two modules are built from here, each with its own feature: `engine` (everything but text) and `tokenizer-module`.
//! Packaging splits functions that few callers need into modules of their own (`xtask/src/package/wasm.rs`). The
//! package's JavaScript combines the modules and is their only caller. Files, targets, scratch space, text, progress
//! and clocks are JavaScript objects passed in ([`source`], [`sink`], [`scratch`], [`codec`], [`control`]), so that the
//! same module serves browsers, Node and Deno. Every failure is an `Error` with a `code`.

pub mod error;
#[cfg(feature = "tokenizer-module")]
pub mod tokenizer;

#[cfg(feature = "engine")]
pub mod auto;
#[cfg(feature = "engine")]
pub mod checkpoint;
#[cfg(feature = "engine")]
pub mod codec;
#[cfg(feature = "engine")]
pub mod control;
#[cfg(feature = "engine")]
pub mod convert;
#[cfg(feature = "engine")]
pub mod judge;
#[cfg(feature = "kernel-tests")]
pub mod kernel_tests;
#[cfg(feature = "engine")]
pub mod model;
#[cfg(feature = "engine")]
pub mod quantize;
#[cfg(feature = "engine")]
pub mod scratch;
#[cfg(feature = "engine")]
pub mod sink;
#[cfg(feature = "engine")]
pub mod source;
#[cfg(feature = "engine")]
mod types;
#[cfg(feature = "engine")]
mod values;

use wasm_bindgen::prelude::wasm_bindgen;

/// Runs when a module is loaded. A panic ends the module for good; with this hook it at least reports its place.
#[wasm_bindgen(start)]
pub fn start() {
    console_error_panic_hook::set_once();
}
