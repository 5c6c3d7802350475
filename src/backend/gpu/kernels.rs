//! The kernels: their sources, linked at build time, and their bindings.
//!
//! A test parses every source with naga and compares its bindings and parameters with these declarations.

use crate::quant::codings::codings;

/// How a kernel accesses a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Access {
    Read,
    Write,
}

/// A kernel before its constants are filled in.
#[derive(Debug)]
pub(super) struct Kernel {
    /// Stem of the file.
    #[cfg(test)]
    pub(super) stem: &'static str,
    /// The stem, with a suffix if the file is linked in several ways.
    pub(super) name: &'static str,
    pub(super) source: &'static str,
    /// The storage buffers in binding order. The parameters are bound after the last.
    pub(super) bindings: &'static [Access],
    /// Size of the parameters in bytes.
    pub(super) params: usize,
    /// Variant of the kernel that sums by subgroups, for devices that support them.
    pub(super) subgroups: Option<&'static Self>,
}

use Access::{Read as R, Write as W};

/// Copies `text` without comments to `code`, as far as it fits, and returns the full length. Comments are a fifth of
/// the text, and every page would load them. Line breaks stay, so that compiler messages name the right line.
pub(super) const fn without_comments(text: &str, code: &mut [u8]) -> usize {
    let text = text.as_bytes();
    let (mut at, mut len) = (0, 0);
    while at < text.len() {
        if text[at] == b'/' && at + 1 < text.len() && text[at + 1] == b'/' {
            while at < text.len() && text[at] != b'\n' {
                at += 1;
            }
        } else {
            if len < code.len() {
                code[len] = text[at];
            }
            len += 1;
            at += 1;
        }
    }
    len
}

/// Links `shaders/<stem>.wgsl` with shared pieces, after the `enable` directive for WGSL extensions. The name is the
/// stem, with a suffix if it is linked with other pieces.
macro_rules! linked {
    ($enable:literal, $stem:literal + $($suffix:literal)+, [$($piece:literal),*], [$($access:ident),*], $params:literal, $subgroups:expr) => {
        Kernel {
            #[cfg(test)]
            stem: $stem,
            name: concat!($stem, $($suffix),+),
            source: {
                const TEXT: &str = concat!(
                    $enable,
                    include_str!(concat!("../../../shaders/", $stem, ".wgsl")),
                    $(include_str!(concat!("../../../shaders/shared/", $piece, ".wgsl")),)*
                );
                const LEN: usize = without_comments(TEXT, &mut []);
                const CODE: [u8; LEN] = {
                    let mut code = [0; LEN];
                    without_comments(TEXT, &mut code);
                    code
                };
                match std::str::from_utf8(&CODE) {
                    Ok(code) => code,
                    Err(_) => panic!("a comment ends inside a character"),
                }
            },
            bindings: &[$($access),*],
            params: $params,
            subgroups: $subgroups,
        }
    };
}

/// Declares a kernel.
macro_rules! kernel {
    ($constant:ident, $stem:literal, $($rest:tt)*) => {
        kernel!($constant, $stem + "", $($rest)*);
    };
    ($constant:ident, $stem:literal + $suffix:literal, $pieces:tt, $accesses:tt, $params:literal) => {
        kernel!("", $constant, $stem + $suffix, $pieces, $accesses, $params);
    };
    ($enable:literal, $constant:ident, $stem:literal + $suffix:literal, $pieces:tt, $accesses:tt, $params:literal) => {
        pub(super) static $constant: Kernel =
            linked!($enable, $stem + $suffix, $pieces, $accesses, $params, None);
    };
}

/// Declares a kernel that sums over invocations, and its variant with subgroups.
///
/// The variant does not exist in browsers: wgpu does not request the feature there. The source would also have to
/// differ, because browsers require `enable subgroups;`, which naga rejects.
macro_rules! summing_kernel {
    ($constant:ident, $stem:literal + $suffix:literal, [$($piece:literal),*], $accesses:tt, $params:literal) => {
        pub(super) static $constant: Kernel =
            linked!("", $stem + $suffix, ["lanes_barriers", $($piece),*], $accesses, $params, {
                #[cfg(not(target_arch = "wasm32"))]
                {
                    static WITH_SUBGROUPS: Kernel =
                        linked!("", $stem + $suffix ".subgroups", ["lanes_subgroups", $($piece),*], $accesses, $params, None);
                    Some(&WITH_SUBGROUPS)
                }
                #[cfg(target_arch = "wasm32")]
                None
            });
    };
}

/// The kernels that decode weights of one coding to floats.
#[derive(Debug)]
pub(super) struct Readers {
    pub(super) embed: &'static Kernel,
    pub(super) matvec: &'static Kernel,
    pub(super) matmul: &'static Kernel,
}

macro_rules! readers {
    ($($(#[$doc:meta])* $name:ident($format:ident) $tensor:ident, $shader:literal + $suffix:literal;)*) => {
        /// By the shader piece that decodes a coding's values.
        static READERS: &[(&str, Readers)] = &[$(($shader, {
            kernel!("", EMBED, "embed" + $suffix, ["weights", $shader, "grid"], [R, R, R, R, W], 48);
            summing_kernel!(
                MATVEC,
                "linear_float.matvec" + $suffix,
                ["linear_params", "weights", $shader, "activations", "grid"],
                [R, R, R, R, R, W],
                48
            );
            kernel!(
                "",
                MATMUL,
                "linear_float.matmul" + $suffix,
                ["linear_params", "weights", $shader, "tile_f32", "activations", "grid"],
                [R, R, R, R, R, W],
                48
            );
            Readers { embed: &EMBED, matvec: &MATVEC, matmul: &MATMUL }
        })),*];
    };
}
codings!(readers);

/// The kernels of the coding that is decoded by the shader piece `shader`. Dense weights use those of integer codes.
pub(super) fn readers(shader: &str) -> &'static Readers {
    let found = READERS.iter().find(|(name, _)| *name == shader);
    &found.expect("the list of codings has made kernels of each").1
}

kernel!(
    "enable f16; ",
    FLOAT_MATMUL_HALF,
    "linear_float.matmul" + ".half",
    ["linear_params", "weights", "weights_affine", "tile_f16", "activations", "grid"],
    [R, R, R, R, R, W],
    48
);
kernel!(INT8_QUANTIZE, "linear_int8.quantize", ["quantize", "rounded_quads", "grid"], [R, W, W], 32);
kernel!(INT8_ROUND_TRIP, "linear_int8.round_trip", ["quantize", "grid"], [R, W], 16);
summing_kernel!(
    INT8_MATVEC,
    "linear_int8.matvec" + "",
    ["linear_params", "weights", "weights_affine", "int8", "dot_plain", "grid"],
    [R, R, R, R, R, R, W],
    48
);
summing_kernel!(
    INT8_MATVEC_PACKED,
    "linear_int8.matvec" + ".packed",
    ["linear_params", "weights", "weights_affine", "int8", "dot_packed", "grid"],
    [R, R, R, R, R, R, W],
    48
);
kernel!(
    INT8_MATMUL,
    "linear_int8.matmul",
    ["linear_params", "weights", "weights_affine", "int8", "dot_plain", "grid"],
    [R, R, R, R, R, R, W],
    48
);
kernel!(
    INT8_MATMUL_PACKED,
    "linear_int8.matmul" + ".packed",
    ["linear_params", "weights", "weights_affine", "int8", "dot_packed", "grid"],
    [R, R, R, R, R, R, W],
    48
);
summing_kernel!(ADD_RMS_NORM, "add_rms_norm" + "", ["grid"], [W, R, R, W], 16);
summing_kernel!(
    ADD_RMS_NORM_QUANTIZE,
    "add_rms_norm.quantize" + "",
    ["quantize", "rounded_quads", "grid"],
    [W, R, R, W, W, W],
    48
);
summing_kernel!(
    ROPE_AND_APPEND_KV,
    "rope_and_append_kv" + "",
    ["segments", "grid"],
    [W, R, R, R, W, W, R],
    48
);
kernel!(ATTENTION_DECODE, "attention.decode", ["attention_params", "segments", "grid"], [R, R, R, W, R], 32);
kernel!(
    ATTENTION_PREFILL,
    "attention.prefill",
    ["attention_params", "segments", "grid"],
    [R, R, R, W, R],
    32
);
kernel!(GATE, "gate", ["grid"], [R, W], 16);
kernel!(ARGMAX, "argmax", ["ordered_key", "grid"], [R, W], 16);
kernel!(TOP_K, "top_k", ["ordered_key", "grid"], [R, W, W, W], 16);
kernel!(GRAM, "gram", ["grid"], [R, W], 16);

// For benchmarks only.
kernel!(MULTIPLY_ADD, "bench/multiply_add", ["grid"], [W], 16);

/// All kernels that models use, without the kernels of codings and variants with subgroups.
#[cfg(any(test, feature = "kernel-tests"))]
static ALL: &[&Kernel] = &[
    &FLOAT_MATMUL_HALF,
    &INT8_QUANTIZE,
    &INT8_ROUND_TRIP,
    &INT8_MATVEC,
    &INT8_MATVEC_PACKED,
    &INT8_MATMUL,
    &INT8_MATMUL_PACKED,
    &ADD_RMS_NORM,
    &ADD_RMS_NORM_QUANTIZE,
    &ROPE_AND_APPEND_KV,
    &ATTENTION_DECODE,
    &ATTENTION_PREFILL,
    &GATE,
    &ARGMAX,
    &TOP_K,
    &GRAM,
];

/// All kernels that models use on any device.
#[cfg(any(test, feature = "kernel-tests"))]
pub(super) fn all() -> impl Iterator<Item = &'static Kernel> {
    let readers = READERS.iter().flat_map(|(_, readers)| [readers.embed, readers.matvec, readers.matmul]);
    readers.chain(ALL.iter().copied()).flat_map(|kernel| [Some(kernel), kernel.subgroups]).flatten()
}
