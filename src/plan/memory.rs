//! Memory of a model at each precision: weights, KV cache, working memory.
//!
//! - **Linear layers** of attention and MLP: at their precision, with f16 scales and packed zero points, and rows
//!   padded to 32-bit words, as in `PackedTensor`. At f32 and f16 they take 4 and 2 bytes per weight.
//! - **Embedding, head, norms, biases**: f16, or f32 at precision f32. A tied head is not counted.
//! - **KV cache**: keys and values of every layer for `context` tokens, in f32 as on the CPU backend. The f16 size is
//!   given separately.
//! - **Working memory** (an estimate), in f32: activations of a block and logits for one prefill chunk, and attention
//!   scores of every head for one token. The chunk is as long as the decoder's for this vocabulary. Logits count twice,
//!   on the device and on the host.

use super::dims::ModelDims;
use super::{product, sum, too_large};
use crate::error::{Error, Result};
use crate::model::runner::longest_chunk;
use crate::options::named;
use crate::quant::{Bits, Granularity, Scheme};
use serde::Serialize;

named! {
    /// Precision of the linear layers
    pub enum Precision {
        /// Single precision
        F32 = "f32",
        /// Half precision
        F16 = "f16",
        /// 8 bits
        Int8 = "int8",
        /// 4 bits
        Int4 = "int4",
        /// -1, 0 and 1
        Ternary = "ternary",
    }
}

impl Precision {
    /// All, largest first.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Int8, Self::Int4, Self::Ternary];
}

/// Options of a memory plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// Tokens in the KV cache.
    pub context: u64,
    /// Available bytes.
    pub memory: Option<u64>,
    /// Granularity of INT8 scales.
    pub int8: Granularity,
    /// Granularity of INT4 scales.
    pub int4: Granularity,
    /// Whether INT8 and INT4 store zero points.
    pub asymmetric: bool,
    /// Granularity of ternary scales.
    pub ternary: Granularity,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            context: 2048,
            memory: None,
            int8: Granularity::Channel,
            int4: Granularity::Group(32),
            asymmetric: false,
            ternary: Granularity::Tensor,
        }
    }
}

impl PlanOptions {
    fn scheme(&self, precision: Precision) -> Option<Scheme> {
        let integer =
            |bits, granularity| Some(Scheme::symmetric(bits, granularity).with_symmetry(!self.asymmetric));
        match precision {
            Precision::F32 | Precision::F16 => None,
            Precision::Int8 => integer(Bits::Eight, self.int8),
            Precision::Int4 => integer(Bits::Four, self.int4),
            Precision::Ternary => Some(Scheme::ternary(self.ternary)),
        }
    }
}

/// Bytes at one precision.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PrecisionPlan {
    /// Precision of the linear layers.
    pub precision: Precision,
    /// The scheme's name, such as `int4-g32-sym`; null for f32 and f16.
    pub scheme: Option<String>,
    /// Mean bits per weight of the linear layers, including scales and zero points.
    pub bits_per_weight: f64,
    /// The linear layers of all blocks, including scales and zero points, without biases.
    pub linear_bytes: u64,
    /// The embedding table.
    pub embedding_bytes: u64,
    /// The head; 0 if it is tied.
    pub head_bytes: u64,
    /// Norm weights and biases.
    pub norm_bytes: u64,
    /// All of the above.
    pub weight_bytes: u64,
    /// Keys and values at f32.
    pub kv_cache_bytes: u64,
    /// Keys and values at f16, for backends with an f16 cache.
    pub kv_cache_f16_bytes: u64,
    /// Working memory, estimated as in the module's documentation.
    pub working_bytes: u64,
    /// Weights, KV cache at f32 and working memory.
    pub total_bytes: u64,
    /// The number of models of this size that fit in the given memory together; null if none was given.
    pub fits: Option<u64>,
}

/// The plan of every precision, largest first.
///
/// # Errors
/// `invalid_argument` for a group size or context of 0, or when a number does not fit 64 bits.
pub(super) fn plan_precisions(dims: &ModelDims, options: &PlanOptions) -> Result<Vec<PrecisionPlan>> {
    if options.context == 0 {
        return Err(Error::invalid_argument("expected a context of at least 1 token but found 0"));
    }
    if [options.int8, options.int4, options.ternary].contains(&Granularity::Group(0)) {
        return Err(Error::invalid_argument("expected a group size of at least 1 but found 0"));
    }
    Precision::ALL.into_iter().map(|precision| plan_precision(dims, options, precision)).collect()
}

fn plan_precision(dims: &ModelDims, options: &PlanOptions, precision: Precision) -> Result<PrecisionPlan> {
    let scheme = options.scheme(precision);
    let dense = if precision == Precision::F32 { 4 } else { 2 };
    let weights = dims.linear_parameters()?;
    let linear_bytes = match scheme {
        None => product(&[weights, dense])?,
        Some(scheme) => {
            let mut block = 0;
            for linear in dims.block_linears()? {
                block = sum(&[block, packed_bytes(scheme, linear.rows, linear.cols)?])?;
            }
            product(&[block, dims.num_hidden_layers])?
        }
    };
    let embedding_bytes = product(&[dims.vocab_size, dims.hidden_size, dense])?;
    let head_bytes = if dims.tie_word_embeddings { 0 } else { embedding_bytes };
    let norm_bytes = product(&[dims.norm_and_bias_parameters()?, dense])?;
    let weight_bytes = sum(&[linear_bytes, embedding_bytes, head_bytes, norm_bytes])?;
    let kv_cache_bytes = kv_cache_bytes(dims, options.context, 4)?;
    let working_bytes = planned_working_bytes(dims, options.context)?;
    let total_bytes = sum(&[weight_bytes, kv_cache_bytes, working_bytes])?;
    Ok(PrecisionPlan {
        precision,
        scheme: scheme.map(|scheme| scheme.to_string()),
        bits_per_weight: linear_bytes as f64 * 8.0 / weights as f64,
        linear_bytes,
        embedding_bytes,
        head_bytes,
        norm_bytes,
        weight_bytes,
        kv_cache_bytes,
        kv_cache_f16_bytes: kv_cache_bytes / 2,
        working_bytes,
        total_bytes,
        fits: options.memory.map(|memory| memory / total_bytes.max(1)),
    })
}

/// Bytes of a `[rows, cols]` matrix, as `PackedTensor::packed_bytes` counts them.
pub fn packed_bytes(scheme: Scheme, rows: u64, cols: u64) -> Result<u64> {
    let bits = u64::from(scheme.storage_bits());
    let words = product(&[cols, bits])?.div_ceil(32);
    let scales = match scheme.granularity() {
        Granularity::Tensor => 1,
        Granularity::Channel => rows,
        Granularity::Group(size) => {
            let size = u64::try_from(size).map_err(|_| too_large())?;
            product(&[rows, cols.div_ceil(size.max(1))])?
        }
    };
    let zero_bits = if scheme.constant_zero_point().is_none() { product(&[scales, bits])? } else { 0 };
    sum(&[product(&[rows, words, 4])?, product(&[scales, 2])?, zero_bits.div_ceil(8)])
}

/// Bytes of keys and values of all layers for `context` tokens.
fn kv_cache_bytes(dims: &ModelDims, context: u64, element: u64) -> Result<u64> {
    product(&[2, dims.num_hidden_layers, dims.num_key_value_heads, dims.head_dim, context, element])
}

fn planned_working_bytes(dims: &ModelDims, context: u64) -> Result<u64> {
    let q = product(&[dims.num_attention_heads, dims.head_dim])?;
    let kv = product(&[dims.num_key_value_heads, dims.head_dim])?;
    // The same sum as in `model::runner::working_bytes`, for a model without a configuration.
    let hidden = product(&[4, dims.hidden_size])?;
    let inner = product(&[3, dims.intermediate_size])?;
    let sub_norms = if dims.sub_norms { sum(&[q, dims.intermediate_size])? } else { 0 };
    let logits = product(&[2, dims.vocab_size])?;
    let token = sum(&[hidden, 1, product(&[2, q])?, product(&[2, kv])?, inner, sub_norms, logits])?;
    let tokens = longest_chunk(usize::try_from(dims.vocab_size).map_err(|_| too_large())?) as u64;
    let scores = product(&[dims.num_attention_heads, context])?;
    product(&[sum(&[product(&[token, tokens])?, scores])?, 4])
}

#[cfg(test)]
mod tests {
    use super::super::dims::tests::small;
    use super::*;
    use crate::model::ModelConfig;
    use crate::model::runner::{cache_bytes, working_bytes};
    use crate::quant::{PackedTensor, Scales};
    use half::f16;
    use serde_json::json;

    fn plans(dims: &ModelDims, options: &PlanOptions) -> Vec<PrecisionPlan> {
        plan_precisions(dims, options).unwrap()
    }

    #[test]
    fn figures_by_hand() {
        // Linears: 2 x (q 128x128, k and v 64x128, o 128x128, gate and up 384x128, down 128x384) = 393,216 weights in
        // 2 x 1,280 rows; embedding 262,144; norms 640.
        let found = plans(&small(), &PlanOptions { context: 512, ..PlanOptions::default() });
        let rows = 2 * (128 + 64 + 64 + 128 + 384 + 384 + 128);
        assert_eq!(rows, 2 * 1280);
        let expected = [
            (Precision::F32, 393_216 * 4, 262_144 * 4, 640 * 4),
            (Precision::F16, 393_216 * 2, 262_144 * 2, 640 * 2),
            (Precision::Int8, 393_216 + rows * 2, 262_144 * 2, 640 * 2),
            (Precision::Int4, 393_216 / 2 + 393_216 / 32 * 2, 262_144 * 2, 640 * 2),
            (Precision::Ternary, 393_216 / 4 + 14 * 2, 262_144 * 2, 640 * 2),
        ];
        for (plan, (precision, linear, embedding, norms)) in found.iter().zip(expected) {
            assert_eq!(plan.precision, precision);
            assert_eq!(
                (plan.linear_bytes, plan.embedding_bytes, plan.norm_bytes),
                (linear, embedding, norms)
            );
            assert_eq!((plan.weight_bytes, plan.head_bytes), (linear + embedding + norms, 0));
            // 2 layers x keys and values x 4 heads x 16 x 512 tokens x 4 bytes.
            assert_eq!((plan.kv_cache_bytes, plan.kv_cache_f16_bytes), (524_288, 262_144));
            // 256 tokens x (4 x 128, an id, 2 x 128 + 2 x 64, 3 x 384, 2 x 2,048 logits), 8 heads x 512 scores, in f32.
            assert_eq!(plan.working_bytes, 4 * (256 * (2049 + 4096) + 8 * 512));
            assert_eq!(plan.total_bytes, plan.weight_bytes + plan.kv_cache_bytes + plan.working_bytes);
        }
        let bits: Vec<f64> = found.iter().map(|plan| plan.bits_per_weight).collect();
        assert_eq!(bits[0..2], [32.0, 16.0]);
        assert_eq!(bits[3], 4.5);
        let schemes: Vec<Option<&str>> = found.iter().map(|plan| plan.scheme.as_deref()).collect();
        assert_eq!(
            schemes,
            [None, None, Some("int8-channel-sym"), Some("int4-g32-sym"), Some("ternary-tensor")]
        );
    }

    #[test]
    fn an_untied_head_and_zero_points_count() {
        let dims = ModelDims { tie_word_embeddings: false, ..small() };
        let options =
            PlanOptions { asymmetric: true, int4: Granularity::Group(128), ..PlanOptions::default() };
        let int4 = &plans(&dims, &options)[3];
        assert_eq!(int4.head_bytes, 262_144 * 2);
        // 3,072 groups of 128: a scale of 2 bytes and a zero point of 4 bits each.
        assert_eq!(int4.linear_bytes, 393_216 / 2 + 3072 * 2 + 3072 / 2);
    }

    #[test]
    fn working_memory_is_what_the_decoder_takes() {
        for (sub_norms, model_type) in [(false, "llama"), (true, "bitnet")] {
            let config = json!({
                "model_type": model_type, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2,
                "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 100_000, "hidden_act": if sub_norms { "relu2" } else { "silu" },
                "max_position_embeddings": 512, "tie_word_embeddings": true
            });
            let config = ModelConfig::from_json(&config).unwrap();
            assert_eq!(config.sub_norms, sub_norms);
            let dims = ModelDims { vocab_size: 100_000, sub_norms, ..small() };
            let plan = &plans(&dims, &PlanOptions { context: 512, ..PlanOptions::default() })[0];
            // The backend allocates the scores.
            assert_eq!(plan.working_bytes, working_bytes(&config) + 4 * 8 * 512);
            assert_eq!(plan.kv_cache_bytes, cache_bytes(&config, 512));
        }
    }

    #[test]
    fn how_many_fit() {
        let one = plans(&small(), &PlanOptions::default())[3].total_bytes;
        for (memory, count) in [(one - 1, 0), (one, 1), (2 * one - 1, 1), (2 * one, 2), (0, 0)] {
            let options = PlanOptions { memory: Some(memory), ..PlanOptions::default() };
            assert_eq!(plans(&small(), &options)[3].fits, Some(count));
        }
        assert_eq!(plans(&small(), &PlanOptions::default())[3].fits, None);
    }

    #[test]
    fn packed_bytes_are_those_of_a_packed_tensor() {
        let integer =
            |bits, granularity, symmetric| Scheme::symmetric(bits, granularity).with_symmetry(symmetric);
        let schemes = [
            integer(Bits::Eight, Granularity::Channel, true),
            integer(Bits::Four, Granularity::Group(32), false),
            integer(Bits::Three, Granularity::Group(64), false),
            integer(Bits::Two, Granularity::Tensor, true),
            Scheme::ternary(Granularity::Channel),
        ];
        for scheme in schemes {
            for (rows, cols) in [(1, 1), (3, 172), (5, 128), (64, 31)] {
                let scales = scheme.granularity().scale_count(rows, cols);
                let zero_points = scheme.constant_zero_point().is_none().then(|| vec![0; scales]);
                let codes = vec![0; rows * scheme.words_per_row(cols)];
                let tensor = PackedTensor::new(
                    scheme,
                    rows,
                    cols,
                    codes,
                    Scales::F16(vec![f16::ONE; scales]),
                    zero_points,
                )
                .unwrap();
                let planned = packed_bytes(scheme, rows as u64, cols as u64).unwrap();
                assert_eq!(planned, tensor.packed_bytes(), "{scheme} {rows} x {cols}");
            }
        }
    }

    #[test]
    fn senseless_options_are_errors() {
        for (options, says) in [
            (PlanOptions { context: 0, ..PlanOptions::default() }, "context"),
            (PlanOptions { int4: Granularity::Group(0), ..PlanOptions::default() }, "group size"),
            (PlanOptions { context: u64::MAX, ..PlanOptions::default() }, "64 bits"),
        ] {
            assert!(plan_precisions(&small(), &options).unwrap_err().message().contains(says));
        }
    }

    /// A tensor's name and its bytes in the file.
    fn tensors(path: &str) -> Option<Vec<(String, u64)>> {
        let path = format!("{}/../shared/{path}/model.safetensors", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(path).ok()?;
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__").map(|(name, entry)| {
            let offset = |i: usize| entry["data_offsets"][i].as_u64().unwrap();
            (name, offset(1) - offset(0))
        });
        Some(tensors.collect())
    }

    #[test]
    fn real_files_have_the_planned_bytes() {
        let total = |path: &str, ends: &str| {
            tensors(path)
                .map(|all| all.iter().filter(|(name, _)| name.ends_with(ends)).map(|(_, n)| n).sum::<u64>())
        };
        let stories = ModelDims {
            vocab_size: 512,
            hidden_size: 64,
            intermediate_size: 172,
            num_hidden_layers: 5,
            head_dim: 8,
            ..small()
        };
        let Some(f32_bytes) = total("models/story-llama-0.66M", "") else {
            println!("skipped: no shared models beside the repository");
            return;
        };
        assert_eq!(plans(&small(), &PlanOptions::default())[0].weight_bytes, f32_bytes);
        let planned = plans(&stories, &PlanOptions::default());
        assert_eq!(Some(planned[0].weight_bytes), total("models/stories260K", ""));
        assert_eq!(Some(planned[1].weight_bytes), total("models/stories260K-f16", ""));

        // Files of another tool: codes as planned, but f32 scales instead of f16.
        let group = |size| PlanOptions { int4: Granularity::Group(size), ..PlanOptions::default() };
        for (path, index, options) in [
            ("peers/llmcompressor-rtn-w4-g32-sym", 3, group(32)),
            ("peers/llmcompressor-rtn-w4-g128-sym", 3, group(128)),
            ("peers/llmcompressor-rtn-w8-channel", 2, PlanOptions::default()),
        ] {
            let codes = total(path, "weight_packed").unwrap();
            let scales = total(path, "weight_scale").unwrap();
            assert_eq!(plans(&small(), &options)[index].linear_bytes, codes + scales / 2, "{path}");
        }
    }
}
