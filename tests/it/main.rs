//! The integration tests: one binary, a module for each topic.
#![cfg(feature = "cli")]

mod api;
mod auto;
mod awq;
mod bad_input;
mod batch;
mod budget;
mod command_line;
mod convert;
mod examples;
mod floors;
mod gguf;
mod gguf_output;
mod gguf_prompts;
mod golden;
mod gptq;
#[cfg(feature = "gpu")]
mod gpu;
#[cfg(feature = "train")]
mod gradients;
mod interop;
mod interrupted;
mod keys;
#[cfg(feature = "train")]
mod levels;
mod never_silent;
mod peak_memory;
mod peers;
mod reads;
mod real_models;
mod recipe;
mod round_trip;
mod session;
mod shipped_model;
mod support;
mod sweep;
mod terminal;
#[cfg(feature = "train")]
mod train;
#[cfg(feature = "train")]
mod train_commands;
#[cfg(feature = "train")]
mod train_runs;
