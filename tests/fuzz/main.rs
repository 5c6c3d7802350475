//! Fuzz targets: everything that parses bytes which anyone may have written.
//!
//! Under `cargo test`, on stable, each target first replays its corpus and then runs a fixed number of mutations of
//! it, the same ones every time. `FUZZ_CASES=1000000 cargo test --test fuzz NAME` runs that many new ones. What is
//! asserted: no panic, no more memory than the input's size justifies, and whatever the target itself checks.
//!
//! To add a target:
//! 1. Put a few small inputs, sound and broken, into `corpus/NAME/`; the file's name says what it is.
//! 2. Write `NAME.rs` with `pub fn run(input: &[u8])`, which parses and panics when the result breaks a promise.
//! 3. Add its `mod` line and a line of the table below.
//!
//! A failure is shrunk and saved, and the message says where. Put that file into the corpus under a name that says
//! what went wrong: it is replayed for ever.
//!
//! The harness mutates the corpus with proptest (a dependency anyway, which shrinks) rather than with a fuzzing
//! library: on stable those do not see coverage either and try random bytes, which hardly ever pass a first check.
//! A target is a plain function, so a coverage-guided fuzzer can call it too.

mod harness;
mod memory;
mod mutate;

mod benchmark;
mod gguf;
mod layout;
mod model_config;
mod safetensors;
mod shard_index;
mod tokenizer;

use harness::Target;

/// A `serde_json::Value` for each byte: the densest JSON that is kept as values is a list of digits or of empty lists.
const JSON_BYTES: usize = 256;

/// A vocabulary is kept, indexed, and written out as JSON; a merge or an escaped control character grows most.
const GGUF_BYTES: usize = 128;

/// The `tokenizers` library makes room for 10,000 words in its cache, whatever the file says.
const TOKENIZER_BYTES: usize = 16 << 10;

/// One test per line: the name of the test and of its corpus, the function, and what else the target wants.
macro_rules! targets {
    ($($name:ident: $target:expr;)*) => {
        $(
            #[test]
            fn $name() {
                harness::fuzz(stringify!($name), &$target);
            }
        )*

        #[test]
        fn every_corpus_has_a_target() {
            harness::check_corpora(&[$(stringify!($name)),*]);
        }
    };
}

targets! {
    benchmark: Target::new(benchmark::run);
    gguf: Target { bytes_per_byte: GGUF_BYTES, ..Target::new(gguf::run) };
    layout: Target { repair: Some(layout::repair), bytes_per_byte: JSON_BYTES, ..Target::new(layout::run) };
    model_config: Target { bytes_per_byte: JSON_BYTES, ..Target::new(model_config::run) };
    safetensors: Target { repair: Some(safetensors::repair), ..Target::new(safetensors::run) };
    shard_index: Target::new(shard_index::run);
    tokenizer: Target { cases: 2_000, bytes_per_byte: TOKENIZER_BYTES, ..Target::new(tokenizer::run) };
}
