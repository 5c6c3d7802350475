//! Kernel selection: pure functions that choose the kernel, its constants and its workgroups. They are tested without a
//! device.

use super::kernels::{self, Kernel, Readers};
use super::segments::Tiling;
use super::units::{Units, Values};
use super::variants::Variants;
use crate::backend::{AttentionShape, GateActivation};
use crate::error::{Error, Result};
use crate::quant::{Activations, Coding};
use std::hash::{Hash, Hasher};

/// Number of tokens from which a tiled product is faster than one matrix-vector product per token.
const TILED_TOKENS: usize = 8;
/// Rows that a group of invocations of a matrix-vector kernel shares.
const MATVEC_ROWS: usize = 4;
/// Invocations per workgroup of a matrix-vector kernel.
const MATVEC_INVOCATIONS: usize = 64;
/// Rows and tokens of a tile.
const TILE: usize = 32;
/// Largest head dimension of the decode kernel.
const MOST_DECODE_HEAD_DIM: usize = 256;
pub(super) const MOST_PREFILL_HEAD_DIM: usize = 128;
/// Tokens of a segment per workgroup of the prefill kernel.
pub(super) const PREFILL_QUERIES: usize = 8;
/// Most workgroups in one dimension of a dispatch.
const MOST_WORKGROUPS: usize = 65_535;

/// A kernel and the constants that are compiled into it.
#[derive(Clone, Debug)]
pub(super) struct KernelChoice {
    kernel: &'static Kernel,
    constants: Vec<(&'static str, u32)>,
}

impl KernelChoice {
    pub(super) fn plain(kernel: &'static Kernel) -> Self {
        Self { kernel, constants: Vec::new() }
    }

    /// `kernel`, or its variant with subgroups if both kernel and device have it.
    fn of(kernel: &'static Kernel, mut constants: Vec<(&'static str, u32)>, variants: Variants) -> Self {
        match (kernel.subgroups, variants.subgroups) {
            (Some(kernel), Some(size)) => {
                constants.push(("SUBGROUP", size));
                Self { kernel, constants }
            }
            _ => Self { kernel, constants },
        }
    }

    pub(super) fn kernel(&self) -> &'static Kernel {
        self.kernel
    }

    pub(super) fn constants(&self) -> &[(&'static str, u32)] {
        &self.constants
    }
}

impl PartialEq for KernelChoice {
    fn eq(&self, other: &Self) -> bool {
        self.kernel.name == other.kernel.name && self.constants == other.constants
    }
}

impl Eq for KernelChoice {}

impl Hash for KernelChoice {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.kernel.name.hash(state);
        self.constants.hash(state);
    }
}

/// A kernel and its number of workgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dispatch {
    pub(super) choice: KernelChoice,
    pub(super) workgroups: [u32; 3],
}

/// `count` workgroups, rounded up to a grid of two dimensions within the limit.
///
/// # Errors
/// `unsupported_format` if two dimensions are not enough.
pub(super) fn grid(count: usize) -> Result<[u32; 3]> {
    let columns = count.div_ceil(MOST_WORKGROUPS).max(1);
    if columns > MOST_WORKGROUPS {
        return Err(Error::unsupported_format(format!(
            "{count} workgroups are more than a GPU can dispatch"
        )));
    }
    Ok([count.div_ceil(columns) as u32, columns as u32, 1])
}

/// `y = W x` for `rows` rows and `tokens` tokens.
pub(super) fn linear(
    units: &Units,
    has_zeros: bool,
    activations: Activations,
    rows: usize,
    tokens: usize,
    variants: Variants,
) -> Result<Dispatch> {
    let int8 = meets_int8(units, activations);
    // An 8-bit code minus an arbitrary zero point may need 9 bits.
    let packed = variants.packed_dot && !(has_zeros && units.values == Values::Codes(8));
    let mut constants = format_constants(units, has_zeros);
    if int8 {
        constants.push(("ONE_GROUP", u32::from(units.groups == 1)));
    } else {
        constants.push(("RAGGED", u32::from(units.is_ragged())));
    }
    let tiled = tokens >= TILED_TOKENS;
    let kernel = match (int8, tiled, packed) {
        (false, false, _) => readers(units).matvec,
        (false, true, _) if variants.half_tiles && units.values == Values::F16 => &kernels::FLOAT_MATMUL_HALF,
        (false, true, _) => readers(units).matmul,
        (true, false, false) => &kernels::INT8_MATVEC,
        (true, true, false) => &kernels::INT8_MATMUL,
        (true, false, true) => &kernels::INT8_MATVEC_PACKED,
        (true, true, true) => &kernels::INT8_MATMUL_PACKED,
    };
    let workgroups = if tiled {
        let [x, y, _] = grid(rows.div_ceil(TILE))?;
        [x, y, tokens.div_ceil(TILE) as u32]
    } else {
        // Two units per invocation if a row is long enough.
        let lanes = (units.units / 2).next_power_of_two().clamp(4, MATVEC_INVOCATIONS);
        constants.push(("LANES", lanes as u32));
        let [x, y, _] = grid(rows.div_ceil(MATVEC_INVOCATIONS / lanes * MATVEC_ROWS))?;
        [x, y, tokens as u32]
    };
    Ok(Dispatch { choice: KernelChoice::of(kernel, constants, variants), workgroups })
}

/// The kernels that decode such weights.
fn readers(units: &Units) -> &'static Readers {
    kernels::readers(units.coding.map_or("weights_affine", Coding::shader))
}

/// Whether products with these weights use integer arithmetic.
pub(super) fn meets_int8(units: &Units, activations: Activations) -> bool {
    activations == Activations::Int8 && units.coding.is_some_and(|coding| coding.affine().is_some())
}

fn format_constants(units: &Units, has_zeros: bool) -> Vec<(&'static str, u32)> {
    vec![
        ("FORMAT", units.values.format()),
        ("BITS", units.values.bits()),
        ("HAS_ZEROS", u32::from(has_zeros)),
    ]
}

/// Embeddings of `tokens` tokens.
pub(super) fn embed(units: &Units, has_zeros: bool, tokens: usize) -> Result<Dispatch> {
    let choice = KernelChoice { kernel: readers(units).embed, constants: format_constants(units, has_zeros) };
    Ok(Dispatch { choice, workgroups: grid(tokens)? })
}

/// Attention of queries that are tiled by `tiling`. If one segment fills a tile, all segments use the prefill kernel.
/// The tiles of short segments are then mostly empty, but a prompt is most of the work.
///
/// # Errors
/// `unsupported_model` for heads that are larger than any kernel supports.
pub(super) fn attention(shape: &AttentionShape, tiling: Tiling) -> Result<Dispatch> {
    if shape.head_dim > MOST_DECODE_HEAD_DIM {
        return Err(Error::unsupported_model(format!(
            "expected attention heads of at most {MOST_DECODE_HEAD_DIM} elements on a GPU but found {}",
            shape.head_dim
        )));
    }
    let tiled = tiling.longest >= PREFILL_QUERIES && shape.head_dim <= MOST_PREFILL_HEAD_DIM;
    let (kernel, workgroups) = if tiled {
        (&kernels::ATTENTION_PREFILL, tiling.tiles * shape.heads)
    } else {
        (&kernels::ATTENTION_DECODE, tiling.rows * shape.heads)
    };
    Ok(Dispatch { choice: KernelChoice::plain(kernel), workgroups: grid(workgroups)? })
}

/// The gate of an MLP, over `elements` elements.
pub(super) fn gate(activation: GateActivation, elements: usize) -> Result<Dispatch> {
    let activation = match activation {
        GateActivation::Silu => 0,
        GateActivation::SquaredRelu => 1,
    };
    let choice = KernelChoice { kernel: &kernels::GATE, constants: vec![("ACTIVATION", activation)] };
    Ok(Dispatch { choice, workgroups: grid(elements.div_ceil(64))? })
}

/// `rows` rows of `X^T X` for `cols` columns.
///
/// # Errors
/// `unsupported_format` if the rows need more workgroups than one dimension has.
pub(super) fn gram(rows: usize, cols: usize) -> Result<Dispatch> {
    let [x, y, _] = grid(cols.div_ceil(TILE))?;
    let z = rows.div_ceil(TILE);
    if z > MOST_WORKGROUPS {
        return Err(Error::unsupported_format(format!(
            "{rows} rows need more workgroups than a GPU can dispatch"
        )));
    }
    Ok(Dispatch { choice: KernelChoice::plain(&kernels::GRAM), workgroups: [x, y, z as u32] })
}

/// A kernel with one workgroup for each item, which sums over its invocations.
pub(super) fn each_sum(kernel: &'static Kernel, items: usize, variants: Variants) -> Result<Dispatch> {
    Ok(Dispatch { choice: KernelChoice::of(kernel, Vec::new(), variants), workgroups: grid(items)? })
}

/// A kernel with one workgroup for each item.
pub(super) fn each(kernel: &'static Kernel, items: usize) -> Result<Dispatch> {
    Ok(Dispatch { choice: KernelChoice::plain(kernel), workgroups: grid(items)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::WeightFormat;
    use crate::dtype::DType;
    use crate::quant::{Bits, Granularity, Scheme};

    #[test]
    fn the_kernel_follows_from_format_activations_and_tokens() {
        let dense = WeightFormat::Dense(DType::F16);
        let int4 = |group| {
            WeightFormat::Packed(
                Scheme::Integer {
                    bits: Bits::Four,
                    granularity: Granularity::Group(group),
                    symmetric: false,
                }
                .into(),
            )
        };
        let ternary = WeightFormat::Packed(Scheme::Ternary { granularity: Granularity::Tensor }.into());
        use Activations::{F32, Int8};
        // Format, activations, rows, tokens: kernel, workgroups, and some of its constants.
        type Case =
            (WeightFormat, Activations, usize, usize, &'static str, [u32; 3], &'static [(&'static str, u32)]);
        let cases: &[Case] = &[
            (dense, F32, 100, 1, "linear_float.matvec", [25, 1, 1], &[("FORMAT", 1), ("LANES", 64)]),
            (dense, F32, 100, 7, "linear_float.matvec", [25, 1, 7], &[("RAGGED", 0)]),
            (dense, F32, 100, 8, "linear_float.matmul", [4, 1, 1], &[("BITS", 16)]),
            // Dense weights are always multiplied by floats, even if these were rounded before.
            (dense, Int8, 100, 100, "linear_float.matmul", [4, 1, 4], &[]),
            (int4(32), F32, 1, 1, "linear_float.matvec", [1, 1, 1], &[("HAS_ZEROS", 1), ("BITS", 4)]),
            (int4(20), F32, 33, 40, "linear_float.matmul", [2, 1, 2], &[("RAGGED", 1)]),
            (int4(32), Int8, 64, 1, "linear_int8.matvec", [16, 1, 1], &[("ONE_GROUP", 0)]),
            (ternary, Int8, 64, 9, "linear_int8.matmul", [2, 1, 1], &[("ONE_GROUP", 1), ("BITS", 2)]),
            // The output head of a large vocabulary: more workgroups than one dimension has.
            (dense, F32, 300_000, 1, "linear_float.matvec", [37_500, 2, 1], &[]),
        ];
        for (format, activations, rows, tokens, kernel, workgroups, constants) in cases {
            let units = Units::new(1024, *format).unwrap();
            let has_zeros = *format == int4(32);
            let base = Variants::default();
            let plan = linear(&units, has_zeros, *activations, *rows, *tokens, base).unwrap();
            assert_eq!(plan.choice.kernel().name, *kernel);
            assert_eq!(plan.workgroups, *workgroups, "{kernel} {rows} {tokens}");
            for constant in *constants {
                assert!(plan.choice.constants().contains(constant), "{constant:?} of {:?}", plan.choice);
            }
        }
    }

    #[test]
    fn packed_products_take_the_place_of_plain_ones_where_they_are_exact() {
        let integer = |bits, symmetric| {
            let granularity = Granularity::Group(32);
            WeightFormat::Packed(Scheme::Integer { bits, granularity, symmetric }.into())
        };
        let ternary = WeightFormat::Packed(Scheme::Ternary { granularity: Granularity::Tensor }.into());
        use Activations::{F32, Int8};
        // Format, activations, tokens: the kernel on a device with packed dot products, without subgroups.
        let cases = [
            (ternary, Int8, 1, "linear_int8.matvec.packed"),
            (ternary, Int8, 9, "linear_int8.matmul.packed"),
            (integer(Bits::Two, false), Int8, 1, "linear_int8.matvec.packed"),
            (integer(Bits::Four, false), Int8, 1, "linear_int8.matvec.packed"),
            (integer(Bits::Eight, true), Int8, 9, "linear_int8.matmul.packed"),
            (integer(Bits::Eight, false), Int8, 1, "linear_int8.matvec"),
            // Activations are not rounded.
            (integer(Bits::Four, true), F32, 1, "linear_float.matvec"),
            (WeightFormat::Dense(DType::F16), Int8, 9, "linear_float.matmul"),
        ];
        for (format, activations, tokens, kernel) in cases {
            let units = Units::new(64, format).unwrap();
            let affine = units.coding.and_then(|coding| coding.affine());
            let has_zeros = affine.is_some_and(|scheme| scheme.constant_zero_point().is_none());
            for subgroups in [None, Some(32)] {
                let variants =
                    Variants { packed_dot: true, rounding_norm: true, subgroups, ..Variants::default() };
                let plan = linear(&units, has_zeros, activations, 10, tokens, variants).unwrap();
                let sums = subgroups.is_some() && kernel.contains(".matvec");
                let expected = if sums { format!("{kernel}.subgroups") } else { kernel.to_owned() };
                assert_eq!(plan.choice.kernel().name, expected, "{format:?}");
                assert_eq!(plan.choice.constants().contains(&("SUBGROUP", 32)), sums, "{expected}");
            }
        }
    }

    #[test]
    fn tiles_have_16_bits_where_weights_and_device_have_them() {
        let int4 = Scheme::Integer { bits: Bits::Four, granularity: Granularity::Group(32), symmetric: true };
        let cases = [
            (WeightFormat::Dense(DType::F16), 8, true, "linear_float.matmul.half"),
            (WeightFormat::Dense(DType::F16), 8, false, "linear_float.matmul"),
            (WeightFormat::Dense(DType::F16), 7, true, "linear_float.matvec"),
            // F16 would lose values of other formats.
            (WeightFormat::Dense(DType::BF16), 8, true, "linear_float.matmul"),
            (WeightFormat::Dense(DType::F32), 8, true, "linear_float.matmul"),
            (WeightFormat::Packed(int4.into()), 8, true, "linear_float.matmul"),
        ];
        for (format, tokens, half_tiles, kernel) in cases {
            let units = Units::new(64, format).unwrap();
            let variants = Variants { half_tiles, ..Variants::default() };
            let plan = linear(&units, false, Activations::F32, 10, tokens, variants).unwrap();
            assert_eq!(plan.choice.kernel().name, kernel, "{format:?}, {tokens} tokens");
        }
    }

    #[test]
    fn sums_are_made_by_subgroups_where_device_and_kernel_have_them() {
        type Case = (&'static Kernel, Option<u32>, &'static str, &'static [(&'static str, u32)]);
        let cases: [Case; 4] = [
            (&kernels::ADD_RMS_NORM, None, "add_rms_norm", &[]),
            (&kernels::ADD_RMS_NORM, Some(8), "add_rms_norm.subgroups", &[("SUBGROUP", 8)]),
            (&kernels::ROPE_AND_APPEND_KV, Some(64), "rope_and_append_kv.subgroups", &[("SUBGROUP", 64)]),
            (&kernels::GATE, Some(32), "gate", &[]),
        ];
        for (kernel, subgroups, name, constants) in cases {
            let variants = Variants { subgroups, ..Variants::default() };
            let Dispatch { choice, workgroups } = each_sum(kernel, 70_000, variants).unwrap();
            assert_eq!((choice.kernel().name, choice.constants()), (name, constants));
            assert_eq!(workgroups, [35_000, 2, 1]);
        }
    }

    #[test]
    fn attention_is_tiled_for_prompts_and_refuses_large_heads() {
        let shape = |head_dim| AttentionShape { heads: 4, kv_heads: 2, head_dim, capacity: 100 };
        let plan = |head_dim, counts: &[usize]| {
            let tiling = Tiling::of(counts.iter().copied());
            attention(&shape(head_dim), tiling).map(|plan| (plan.choice.kernel().name, plan.workgroups[0]))
        };
        let cases: [(usize, &[usize], _); 7] = [
            (64, &[1], ("attention.decode", 4)),
            (64, &[8], ("attention.prefill", 4)),
            (128, &[100], ("attention.prefill", 52)),
            (256, &[100], ("attention.decode", 400)),
            // Many sequences with one token each would fill no tile.
            (64, &[1; 16], ("attention.decode", 64)),
            (64, &[1, 20, 7, 9], ("attention.prefill", 28)),
            (64, &[], ("attention.decode", 0)),
        ];
        for (head_dim, counts, expected) in cases {
            assert_eq!(plan(head_dim, counts).unwrap(), expected, "{head_dim}, {counts:?}");
        }
        assert!(plan(258, &[1]).unwrap_err().to_string().contains("at most 256"));
    }

    #[test]
    fn grids_cover_everything() {
        for count in [0, 1, 65_535, 65_536, 131_071, 10_000_019] {
            let [x, y, z] = grid(count).unwrap();
            assert!(x as usize * y as usize >= count && x <= 65_535 && y <= 65_535 && z == 1, "{count}");
        }
        assert!(grid(usize::MAX / 2).is_err());
    }
}
