//! What JavaScript sees of this crate: thin bindings without logic, for the modules of the npm package.
//!
//! Two modules are built from here, each with its own feature: `engine` (everything but text) and `tokenizer-module`. When the
//! engine is packed, what only some of its functions need becomes a module of its own (`xtask/src/package/wasm.rs`). The
//! package's own JavaScript puts them together, and is their only caller. Bytes, targets, scratch space, text, progress
//! and clocks are objects of JavaScript that are handed in ([`source`], [`sink`], [`scratch`], [`codec`], [`control`]), so
//! that one module serves browsers, Node and Deno alike. Every failure is an `Error` with a `code`.

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

/// Runs when a module is loaded: a panic, which ends the module for good, at least says where it was.
#[wasm_bindgen(start)]
pub fn start() {
    console_error_panic_hook::set_once();
}
