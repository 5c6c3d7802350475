//! The GPTQ layout, as written by AutoGPTQ, GPTQModel and auto-round.
//!
//! For weights of 2, 3, 4 and 8 bits, `b` below:
//!
//! | tensor | type | shape | |
//! |---|---|---|---|
//! | `qweight` | I32 | `[in * b / 32, out]` | a dense bit stream down each column, least significant bit first |
//! | `qzeros` | I32 | `[groups, ceil(out * b / 32)]` | a bit stream along each row |
//! | `scales` | F16 | `[groups, out]` | weight = (code - zero point) * scale |
//! | `g_idx` | I32 | `[in]` | the group of each input; with `desc_act` it differs from `i / group_size` |
//!
//! Version 1 (`checkpoint_format: "gptq"`) stores zero points minus one, version 2 (`gptq_v2`) unchanged. Labels are
//! unreliable. Symmetric zero points are all equal and reveal the version. For asymmetric ones, the label and the
//! writing tool decide, or the caller.
//!
//! Not read: other packings under the same method (`marlin`, `gptq_p`, ...), and words that are not 32 bits wide.

mod config;
pub(super) mod dynamic;
mod reader;
mod writer;
mod zeros;

pub use config::Config;
pub(super) use config::{KNOWN_KEYS, granularity};
pub(super) use writer::{can_hold, encode, planned_tensors, quantization_config};
pub use zeros::GptqZeros;

/// This crate's name in `meta.quantizer`.
const QUANTIZER: &str = "lowbit";

/// A module's tensor names.
struct GptqNames {
    weight: String,
    qweight: String,
    qzeros: String,
    scales: String,
    g_idx: String,
}

impl GptqNames {
    fn new(module: &str) -> Self {
        let name = |suffix: &str| format!("{module}.{suffix}");
        Self {
            weight: name("weight"),
            qweight: name("qweight"),
            qzeros: name("qzeros"),
            scales: name("scales"),
            g_idx: name("g_idx"),
        }
    }
}

#[cfg(test)]
mod tests;
