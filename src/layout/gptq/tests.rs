//! GPTQ against files packed bit by bit according to the tools' documentation.

mod written;

use crate::dtype::DType;
use crate::error::{ErrorCode, Result};
use crate::format::safetensors::TensorInfo;
use crate::format::shard_index::TensorStore;
use crate::layout::{GptqZeros, Layout, ModuleStorage, OpenOptions, PackedFormat, TargetLayout};
use crate::quant::{Activations, Bits, Granularity, PackedTensor, Scales, Scheme, column_order, packing};
use crate::task::block_on;
use half::f16;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const MODULE: &str = "model.layers.0.mlp.up_proj";

type Tensors = Vec<(String, TensorInfo, Vec<u8>)>;

fn open(config: &Value, tensors: Tensors, options: OpenOptions) -> Result<(TensorStore, Layout)> {
    let store = TensorStore::in_memory("test", tensors, BTreeMap::new()).unwrap();
    let layout = block_on(Layout::open(Some(config), &store, &options))?;
    Ok((store, layout))
}

fn read(config: &Value, tensors: Tensors) -> Result<(ModuleStorage, PackedTensor)> {
    let (store, layout) = open(config, tensors, OpenOptions::default())?;
    let storage = layout.module(&store, MODULE)?;
    Ok((storage, block_on(layout.read_packed(&store, MODULE))?.affine().unwrap().clone()))
}

/// Values in documentation order, `[in][out]` and `[group][out]`.
#[derive(Clone)]
struct Documented {
    bits: u32,
    codes: Vec<Vec<u32>>,
    zeros: Vec<Vec<u32>>,
    scales: Vec<Vec<f32>>,
    g_idx: Vec<i32>,
}

/// Packs a dense bit stream, one bit at a time.
fn stream(values: impl Iterator<Item = u32>, bits: u32) -> Vec<u32> {
    let bits: Vec<u32> = values.flat_map(|value| (0..bits).map(move |bit| value >> bit & 1)).collect();
    bits.chunks(32).map(|word| word.iter().enumerate().fold(0, |all, (at, bit)| all | bit << at)).collect()
}

fn i32s(words: impl IntoIterator<Item = u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

impl Documented {
    fn new(bits: u32, inputs: usize, outputs: usize, group_size: usize, seed: u32) -> Self {
        let mask = (1 << bits) - 1;
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state >> 8
        };
        let groups = inputs.div_ceil(group_size);
        let mut matrix = |rows: usize| -> Vec<Vec<u32>> {
            (0..rows).map(|_| (0..outputs).map(|_| next() & mask).collect()).collect()
        };
        let (codes, zeros) = (matrix(inputs), matrix(groups));
        // Both signs, exact in half precision.
        let scale = |group: usize, output: usize| {
            (output as f32 + 1.0) / 64.0 * if group.is_multiple_of(2) { 1.0 } else { -1.0 }
        };
        let scales =
            (0..groups).map(|group| (0..outputs).map(|output| scale(group, output)).collect()).collect();
        Self { bits, codes, zeros, scales, g_idx: (0..inputs).map(|i| (i / group_size) as i32).collect() }
    }

    fn symmetric(mut self) -> Self {
        self.zeros.iter_mut().flatten().for_each(|zero| *zero = 1 << (self.bits - 1));
        self
    }

    fn weight(&self, input: usize, output: usize) -> f32 {
        let group = self.g_idx[input] as usize;
        (self.codes[input][output] as f32 - self.zeros[group][output] as f32) * self.scales[group][output]
    }

    /// The tensors; `minus` is what the version subtracts from a zero point.
    fn tensors(&self, minus: u32) -> Tensors {
        let (inputs, outputs, groups) = (self.codes.len(), self.codes[0].len(), self.zeros.len());
        let mask = (1 << self.bits) - 1;
        let down: Vec<Vec<u32>> = (0..outputs)
            .map(|output| stream((0..inputs).map(|i| self.codes[i][output]), self.bits))
            .collect();
        let words = down[0].len();
        let qweight = (0..words).flat_map(|word| down.iter().map(move |column| column[word]));
        let across: Vec<Vec<u32>> = (0..groups)
            .map(|g| stream(self.zeros[g].iter().map(|zero| zero.wrapping_sub(minus) & mask), self.bits))
            .collect();
        let scales =
            self.scales.iter().flatten().flat_map(|scale| f16::from_f32(*scale).to_le_bytes()).collect();
        let tensor = |name: &str, dtype, dims: [usize; 2], bytes: Vec<u8>| {
            (format!("{MODULE}.{name}"), TensorInfo::new(dtype, dims.map(|dim| dim as u64)), bytes)
        };
        vec![
            tensor("qweight", DType::I32, [words, outputs], i32s(qweight)),
            tensor("qzeros", DType::I32, [groups, across[0].len()], i32s(across.concat())),
            tensor("scales", DType::F16, [groups, outputs], scales),
            (
                format!("{MODULE}.g_idx"),
                TensorInfo::new(DType::I32, [inputs as u64]),
                i32s(self.g_idx.iter().map(|&g| g as u32)),
            ),
        ]
    }

    fn check(&self, tensor: &PackedTensor) {
        let (inputs, outputs) = (self.codes.len(), self.codes[0].len());
        assert_eq!((tensor.rows(), tensor.cols()), (outputs, inputs));
        let mut weights = vec![0.0; inputs * outputs];
        crate::quant::dequantize::rows(tensor, 0..outputs, &mut weights);
        for output in 0..outputs {
            for input in 0..inputs {
                assert_eq!(weights[output * inputs + input], self.weight(input, output), "{input} {output}");
                assert_eq!(tensor.code(output, input), self.codes[input][output], "{input} {output}");
            }
        }
    }
}

fn config(bits: u32, group_size: i64, sym: bool, more: Value) -> Value {
    let mut config = json!({"quant_method": "gptq", "bits": bits, "group_size": group_size, "sym": sym});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

#[test]
fn every_width_and_version_reads_as_documented() {
    for bits in [2, 3, 4, 8] {
        for (group_size, configured) in [(32, 32), (64, -1), (24, 24)] {
            let file = Documented::new(bits, 64, 32, group_size, bits);
            let v1 = config(bits, configured, false, json!({}));
            file.check(&read(&v1, file.tensors(1)).unwrap().1);
            let v2 = config(bits, configured, false, json!({"checkpoint_format": "gptq_v2"}));
            file.check(&read(&v2, file.tensors(0)).unwrap().1);

            let file = file.symmetric();
            for minus in [0, 1] {
                // Symmetric zero points reveal their version, whatever the label says.
                for label in ["gptq", "gptq_v2"] {
                    let config = config(bits, configured, true, json!({"checkpoint_format": label}));
                    let (storage, tensor) = read(&config, file.tensors(minus)).unwrap();
                    file.check(&tensor);
                    let ModuleStorage::Packed { coding, .. } = storage else { panic!("{storage:?}") };
                    assert_eq!(coding.affine().unwrap().constant_zero_point(), Some(1 << (bits - 1)));
                    // They are also read if the config does not say that they are symmetric.
                    let unsaid = json!({"quant_method": "gptq", "bits": bits, "group_size": configured});
                    file.check(&read(&unsaid, file.tensors(minus)).unwrap().1);
                }
            }
        }
    }
}

#[test]
fn act_order_is_read_from_g_idx() {
    for (bits, group_size) in [(4, 16), (3, 32), (2, 24)] {
        let mut file = Documented::new(bits, 64, 32, group_size, 9);
        file.g_idx.reverse();
        file.g_idx.rotate_left(5);
        let (_, tensor) =
            read(&config(bits, group_size as i64, false, json!({"desc_act": true})), file.tensors(1))
                .unwrap();
        assert!(tensor.column_order().is_some());
        assert_eq!(tensor.g_idx(), file.g_idx);
        file.check(&tensor);
        // Without `g_idx`, groups are contiguous inputs.
        let plain = Documented::new(bits, 64, 32, group_size, 9);
        let mut tensors = plain.tensors(1);
        tensors.pop();
        plain.check(&read(&config(bits, group_size as i64, false, json!({})), tensors).unwrap().1);
    }
}

/// A writer that subtracts one from all fields of a word at once.
#[test]
fn zero_points_that_borrowed_come_back_where_the_writer_is_known() {
    let mut file = Documented::new(4, 32, 8, 32, 3);
    file.zeros = vec![vec![0, 7, 0, 0, 3, 15, 1, 0]];
    let mut tensors = file.tensors(0);
    for word in tensors[1].2.as_chunks_mut::<4>().0 {
        *word = u32::from_le_bytes(*word).wrapping_sub(0x1111_1111).to_le_bytes();
    }
    let known = json!({"checkpoint_format": "gptq", "meta": {"quantizer": ["gptqmodel:7.7.0"]}});
    file.check(&read(&config(4, 32, false, known.clone()), tensors).unwrap().1);
    // 3-bit zero points never borrow.
    let file = Documented::new(3, 32, 32, 32, 3);
    file.check(&read(&config(3, 32, false, known), file.tensors(1)).unwrap().1);
}

#[test]
fn labels_and_writers_decide_asymmetric_zero_points_and_a_guess_is_told() {
    use GptqZeros::{V1, V2};
    let gptqmodel = json!({"quantizer": ["gptqmodel:7.7.0"]});
    // (further config, caller's choice) -> (version, whether there is a warning)
    let cases = [
        (json!({}), None, V1, true),
        (json!({"checkpoint_format": "gptq"}), None, V1, true),
        (json!({"checkpoint_format": "gptq"}), Some(V2), V2, false),
        (json!({"checkpoint_format": "gptq_v2"}), None, V2, false),
        (json!({"format": "gptq_v2", "meta": gptqmodel.clone()}), None, V2, false),
        (json!({"checkpoint_format": "gptq", "meta": gptqmodel.clone()}), None, V1, false),
        (json!({"checkpoint_format": "gptq", "meta": gptqmodel.clone()}), Some(V2), V2, false),
        (json!({"checkpoint_format": "gptq", "meta": {"quantizer": ["gptqmodel:0.8.1"]}}), None, V1, true),
        (json!({"checkpoint_format": "gptq", "meta": {"quantizer": "gptqmodel:1.0"}}), None, V1, false),
        (json!({"checkpoint_format": "gptq", "meta": {"quantizer": [1, null, "x"]}}), None, V1, true),
        (json!({"provider": "auto-round"}), None, V1, false),
        (json!({}), Some(V1), V1, false),
    ];
    let file = Documented::new(4, 32, 8, 32, 5);
    assert!(file.zeros[0].iter().all(|&zero| zero > 0), "a zero would depend on who wrote it");
    for (more, word, version, warned) in cases {
        let config = config(4, 32, false, more);
        let minus = if version == V1 { 1 } else { 0 };
        let (store, layout) =
            open(&config, file.tensors(minus), OpenOptions::default().gptq_zeros(word)).unwrap();
        file.check(block_on(layout.read_packed(&store, MODULE)).unwrap().affine().unwrap());
        assert_eq!(layout.warnings().len(), usize::from(warned), "{config} {word:?}");
        let symmetric = json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": true});
        let (_, layout) =
            open(&symmetric, file.tensors(minus), OpenOptions::default().gptq_zeros(word)).unwrap();
        assert!(layout.warnings().is_empty());
    }
}

#[test]
fn dynamic_gives_modules_their_own_settings() {
    let file = Documented::new(8, 64, 32, 64, 1).symmetric();
    let dynamic = json!({"dynamic": {r"+:.*\.up_proj$": {"bits": 8, "group_size": -1}}});
    let (storage, tensor) = read(&config(4, 32, true, dynamic), file.tensors(1)).unwrap();
    let scheme = Scheme::Integer { bits: Bits::Eight, granularity: Granularity::Channel, symmetric: true };
    assert_eq!(tensor.scheme(), scheme);
    assert_eq!(storage.shape(), (32, 64));
    file.check(&tensor);
    let skip = config(4, 32, true, json!({"dynamic": {r"-:.*mlp": {}}}));
    let error = read(&skip, file.tensors(1)).unwrap_err();
    assert!(error.to_string().contains("`dynamic` leaves them in floating point"), "{error}");
}

#[test]
fn contradictions_are_errors_that_name_the_module() {
    type Spoil = fn(&mut Value, &mut Tensors);
    let cases: [(&str, ErrorCode, Spoil); 14] = [
        ("up_proj.qzeros` is missing", ErrorCode::InvalidCheckpoint, |_, t| {
            t.retain(|(name, ..)| !name.ends_with("qzeros"));
        }),
        ("up_proj.scales` is missing", ErrorCode::InvalidCheckpoint, |_, t| {
            t.retain(|(name, ..)| !name.ends_with("scales"));
        }),
        ("up_proj.weight` is missing", ErrorCode::InvalidCheckpoint, |_, t| t.clear()),
        ("but found both", ErrorCode::InvalidCheckpoint, |_, t| {
            t.push((format!("{MODULE}.weight"), TensorInfo::new(DType::F16, [1, 1]), vec![0; 2]));
        }),
        ("expected values of type I32 but found F32", ErrorCode::InvalidCheckpoint, |_, t| {
            t[0].1.dtype = DType::F32
        }),
        ("expected scales of type F16, BF16 or F32 but found I16", ErrorCode::UnsupportedFormat, |_, t| {
            t[2].1.dtype = DType::I16;
        }),
        ("expected shape [2, 32] but found [32, 2]", ErrorCode::InvalidCheckpoint, |_, t| {
            t[2].1 = TensorInfo::new(DType::F16, [32, 2]);
        }),
        ("expected shape [2, 4] but found [4, 2]", ErrorCode::InvalidCheckpoint, |_, t| {
            t[1].1 = TensorInfo::new(DType::I32, [4, 2]);
        }),
        ("expected shape [64] but found [32, 2]", ErrorCode::InvalidCheckpoint, |_, t| {
            t[3].1 = TensorInfo::new(DType::I32, [32, 2]);
        }),
        ("from 0 to 1 but found group 2 at column 3", ErrorCode::InvalidCheckpoint, |_, t| t[3].2[12] = 2),
        ("from 0 to 1 but found group -1 at column 0", ErrorCode::InvalidCheckpoint, |_, t| {
            t[3].2[..4].copy_from_slice(&[0xff; 4]);
        }),
        ("expected group 0 to have 32 columns but found 31", ErrorCode::UnsupportedFormat, |_, t| {
            t[3].2[0] = 1
        }),
        ("expected finite scales but found inf", ErrorCode::NonFinite, |_, t| {
            t[2].2[..2].copy_from_slice(&[0, 0x7c]);
        }),
        ("all 7 (version 1) or all 8 (version 2), but found others", ErrorCode::InvalidCheckpoint, |c, _| {
            c["sym"] = json!(true);
        }),
    ];
    let sound = || (config(4, 32, false, json!({})), Documented::new(4, 64, 32, 32, 7).tensors(1));
    let (config, tensors) = sound();
    read(&config, tensors).unwrap();
    for (message, code, spoil) in cases {
        let (mut config, mut tensors) = sound();
        spoil(&mut config, &mut tensors);
        let error = read(&config, tensors).unwrap_err();
        assert!(error.to_string().contains(message), "expected {message:?} but found {error}");
        assert!(error.to_string().contains(MODULE), "{error}");
        assert_eq!(error.code(), code, "{error}");
    }
    // Words that do not hold a whole number of inputs.
    let mut file = Documented::new(3, 64, 32, 32, 7).tensors(1);
    file[0].1 = TensorInfo::new(DType::I32, [4, 48]);
    let error = read(&super::tests::config(3, 32, false, json!({})), file).unwrap_err();
    assert!(error.to_string().contains("expected whole inputs of 3 bits but found 4 words"), "{error}");
}

#[test]
fn what_is_not_read_is_named() {
    for (more, word) in [
        (json!({"checkpoint_format": "marlin"}), "`marlin`"),
        (json!({"format": "gptq_p"}), "`gptq_p`"),
        (json!({"is_marlin_format": true}), "`marlin`"),
        (json!({"pack_dtype": "int64"}), "`int64`"),
        (json!({"bits": 5}), "found 5"),
        (json!({"bits": -4}), "found -4"),
        (json!({"bits": 4.5}), "quantization_config"),
        (json!({"group_size": 0}), "found 0"),
        (json!({"group_size": -2}), "found -2"),
        (json!({"dynamic": {"a": {"bits": 6}}}), "found 6"),
        (json!({"dynamic": {"a": {"quant_method": "awq"}}}), "`quant_method`"),
        (json!({"quant_method": "auto-round", "packing_format": "auto_round:fp8"}), "`auto_round:fp8`"),
        (json!({"quant_method": "auto-round", "act_bits": 8}), "act_bits"),
        (json!({"rotation": "hadamard"}), "`rotation`"),
        (json!({"quant_method": "bitsandbytes"}), "`bitsandbytes`"),
    ] {
        let config = config(4, 32, true, more);
        let error = read(&config, Documented::new(4, 64, 32, 32, 7).tensors(1)).unwrap_err();
        assert!(error.to_string().contains(word), "{config}: {error}");
    }
    // Old side files are recognized by their keys.
    let old = json!({"bits": 4, "group_size": 32, "damp_percent": 0.01, "desc_act": false});
    let file = Documented::new(4, 64, 32, 32, 7).symmetric();
    file.check(&read(&old, file.tensors(1)).unwrap().1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Small tensors of any type and shape under the relevant names give a result or an error, never a panic.
    #[test]
    fn no_tensors_make_the_reader_panic(
        specs in prop::collection::vec(
            (0usize..5, prop::sample::select(vec![DType::I32, DType::F16, DType::F32]),
             prop::collection::vec(0u64..6, 0..3), any::<u64>()),
            0..6,
        ),
        words in 1u64..7, outputs in 1u64..9, groups in 1u64..5,
        bits in prop::sample::select(vec![2, 3, 4, 8]),
        group_size in -1i64..20,
        symmetric: bool,
    ) {
        let sound = [
            ("qweight", DType::I32, vec![words, outputs]),
            ("qzeros", DType::I32, vec![groups, (outputs * bits).div_ceil(32)]),
            ("scales", DType::F16, vec![groups, outputs]),
        ];
        let mut tensors: BTreeMap<String, (TensorInfo, Vec<u8>)> = BTreeMap::new();
        for (suffix, dtype, dims) in sound {
            let info = TensorInfo::new(dtype, dims);
            let bytes = vec![0x33; info.byte_len().unwrap() as usize];
            tensors.insert(format!("{MODULE}.{suffix}"), (info, bytes));
        }
        let suffixes = ["qweight", "qzeros", "scales", "g_idx", "weight"];
        for (suffix, dtype, dims, seed) in specs {
            let info = TensorInfo::new(dtype, dims);
            let len = info.byte_len().unwrap() as usize;
            let bytes = seed.to_le_bytes().iter().copied().cycle().take(len).collect();
            tensors.insert(format!("{MODULE}.{}", suffixes[suffix]), (info, bytes));
        }
        let tensors = tensors.into_iter().map(|(name, (info, bytes))| (name, info, bytes)).collect();
        let _ = read(&config(bits as u32, group_size, symmetric, json!({})), tensors);
    }
}
