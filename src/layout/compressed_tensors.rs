//! The compressed-tensors layout of vLLM and llm-compressor, version 0.20 of the Python package.
//!
//! `pack-quantized`, for weights of 2, 3, 4 and 8 bits, `b` below:
//!
//! | tensor | type | shape | |
//! |---|---|---|---|
//! | `weight_packed` | I32 | `[out, ceil(in * b / 32)]` | the dense bit streams of [`PackedTensor`], one per row |
//! | `weight_scale` | F16, BF16, F32 | `[out, groups]`, `[out, 1]` or `[1]` | per group, channel or tensor |
//! | `weight_zero_point` | I32 | `[ceil(out * b / 32), groups]` | asymmetric only; a bit stream down each column |
//! | `weight_shape` | I64 | `[2]` | `out, in` |
//!
//! Signed codes and zero points are stored with `2^(b-1)` added, which matches this crate's unsigned codes.
//!
//! `int-quantized` (and `naive-quantized`): `weight` I8 `[out, in]` and `weight_zero_point` I8 `[out, groups]`, both
//! signed. It is always read, but written only for the embedding table: `transformers` 5.23 cannot open a folder with a
//! `pack-quantized` embedding.
//!
//! `transformers` 5.23 opens asymmetric `pack-quantized` folders, including llm-compressor's, only with
//! `CompressedTensorsConfig(dequantize=True)`. That option applies the first config group to every module.
//!
//! Ternary weights with a scale per channel, which the BitNet layout cannot hold, are written as symmetric 2-bit codes.
//! They are read back as such: the weights are equal, but the scheme's name changes.
//!
//! Columns are stored in input order. If groups are not contiguous (`actorder: "group"`), `weight_g_idx`, I32 `[in]`,
//! holds the group of each column.
//!
//! Not read: float and block-wise formats, transforms, quantized KV caches.

mod config;
mod reader;
mod targets;
mod writer;

pub use config::Config;
pub(super) use config::KNOWN_KEYS;
pub(super) use writer::{can_hold, encode, planned_tensors, quantization_config};

#[cfg(doc)]
use crate::quant::PackedTensor;

/// A module's tensor names.
struct CompressedNames {
    weight: String,
    packed: String,
    scale: String,
    zero_point: String,
    shape: String,
    g_idx: String,
}

impl CompressedNames {
    fn new(module: &str) -> Self {
        let name = |suffix: &str| format!("{module}.{suffix}");
        Self {
            weight: name("weight"),
            packed: name("weight_packed"),
            scale: name("weight_scale"),
            zero_point: name("weight_zero_point"),
            shape: name("weight_shape"),
            g_idx: name("weight_g_idx"),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::dtype::DType;
    use crate::error::{ErrorCode, Result};
    use crate::format::safetensors::TensorInfo;
    use crate::format::shard_index::TensorStore;
    use crate::format::source::FsDir;
    use crate::layout::{Layout, ModuleStorage, OpenOptions, PackedFormat, TargetLayout};
    use crate::quant::{
        ActivationGrid, Activations, Bits, Granularity, PackedTensor, RtnQuantizer, ScaleType, Scales,
        Scheme, TernaryQuantizer, column_order, dequantize,
    };
    use crate::task::block_on;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use sha2::{Digest, Sha256};
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};

    const MODULE: &str = "model.layers.0.mlp.up_proj";
    const TARGET: TargetLayout = TargetLayout::CompressedTensors;

    type Tensors = Vec<(String, TensorInfo, Vec<u8>)>;

    fn store(tensors: Tensors) -> TensorStore {
        TensorStore::in_memory("test", tensors, BTreeMap::new()).unwrap()
    }

    fn read(config: &Value, tensors: Tensors, module: &str) -> Result<(ModuleStorage, PackedTensor)> {
        let store = store(tensors);
        let layout = block_on(Layout::open(Some(config), &store, &OpenOptions::default()))?;
        assert_eq!(layout.activation_grid(), ActivationGrid::FullRange);
        let storage = layout.module(&store, module)?;
        Ok((storage, block_on(layout.read_packed(&store, module))?.affine().unwrap().clone()))
    }

    /// The writer's tensors for a matrix. Checks that names, types and shapes are the planned ones.
    fn written(module: &str, tensor: &PackedTensor) -> Tensors {
        let format = PackedFormat::from(tensor);
        let planned = TARGET.planned_tensors(module, tensor.rows(), tensor.cols(), format);
        let encoded = TARGET.encode(module, tensor.clone(), format).unwrap();
        assert_eq!(planned.len(), encoded.len());
        let join = |((name, info), (encoded_name, bytes)): ((String, TensorInfo), (String, Vec<u8>))| {
            assert_eq!(name, encoded_name);
            (name, info, bytes)
        };
        planned.into_iter().zip(encoded).map(join).collect()
    }

    fn format(scheme: Scheme) -> PackedFormat {
        PackedFormat { coding: scheme.into(), scale_type: ScaleType::F16, reordered: false }
    }

    fn config_for(module: &str, scheme: Scheme) -> Value {
        TARGET.quantization_config(&[(module.to_owned(), format(scheme))], &[], Activations::F32).unwrap()
    }

    fn quantize(scheme: Scheme, cols: usize, weights: &[f32], scale_type: ScaleType) -> PackedTensor {
        let mut quantizer = RtnQuantizer::new(scheme, weights.len() / cols, cols, scale_type).unwrap();
        quantizer.push_rows(weights).unwrap();
        quantizer.finish().unwrap()
    }

    fn restored(tensor: &PackedTensor) -> Vec<f32> {
        let mut out = vec![0.0; tensor.rows() * tensor.cols()];
        dequantize::rows(tensor, 0..tensor.rows(), &mut out);
        out
    }

    fn words(json: &Value) -> Vec<u8> {
        let rows = json.as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap());
        rows.flat_map(|word| (word.as_i64().unwrap() as i32).to_le_bytes()).collect()
    }

    fn floats(json: &Value) -> Vec<f32> {
        match json {
            Value::Array(items) => items.iter().flat_map(floats).collect(),
            number => vec![number.as_f64().unwrap() as f32],
        }
    }

    /// `scaled` of tests/interop/synthetic.py.
    fn synthetic(name: &str, count: usize, a: f32) -> Vec<f32> {
        let seed = name.bytes().fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        let value = |index: u64| {
            let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f32 * 2f32.powi(-23) - 1.0
        };
        (0..count as u64).map(|index| value(index) * a).collect()
    }

    /// The compressed-tensors package quantized the same matrices by its own rule and packed them.
    #[test]
    fn the_package_itself_makes_the_same_bytes() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/compressed_tensors.json");
        let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 16);
        for case in cases {
            let name = case["name"].as_str().unwrap();
            let (rows, cols) =
                (case["shape"][0].as_u64().unwrap() as usize, case["shape"][1].as_u64().unwrap() as usize);
            let mut weights = synthetic(name, rows * cols, golden["a"].as_f64().unwrap() as f32);
            let mut scales = floats(&case["weight_scale"]);
            let groups = scales.len() / rows;
            if let Some(zeroed) = case["zeroed"].as_array() {
                let zeroed: Vec<usize> = zeroed.iter().map(|n| n.as_u64().unwrap() as usize).collect();
                weights[zeroed[0] * cols + zeroed[1]..zeroed[0] * cols + zeroed[2]].fill(0.0);
                // For all-zero groups the package uses the machine epsilon as scale; this crate uses 1.
                scales[zeroed[0] * groups + zeroed[1] * groups / cols] = 1.0;
            }
            let scheme = Scheme::Integer {
                bits: Bits::try_from(case["bits"].as_u64().unwrap() as u32).unwrap(),
                granularity: case["group_size"]
                    .as_u64()
                    .map_or(Granularity::Channel, |size| Granularity::Group(size as usize)),
                symmetric: case["symmetric"].as_bool().unwrap(),
            };
            let tensor = quantize(scheme, cols, &weights, ScaleType::F32);
            assert_eq!(tensor.scales(), &Scales::F32(scales), "{name}");
            let tensors = written(MODULE, &tensor);
            let bytes = |suffix: &str| {
                let wanted = format!("{MODULE}.{suffix}");
                tensors.iter().find(|(name, ..)| *name == wanted).map(|(_, _, bytes)| bytes.clone())
            };
            assert_eq!(bytes("weight_packed").unwrap(), words(&case["weight_packed"]), "{name}");
            let zero_points = case.get("weight_zero_point").map(words);
            assert_eq!(bytes("weight_zero_point"), zero_points, "{name}");

            let (storage, found) = read(&config_for(MODULE, scheme), tensors, MODULE).unwrap();
            assert_eq!(
                storage,
                ModuleStorage::Packed { coding: scheme.into(), activations: Activations::F32, rows, cols }
            );
            assert_eq!(found, tensor, "{name}");
            let tail = floats(&case["dequantized_tail"]);
            assert_eq!(restored(&found)[rows * cols - tail.len()..], tail, "{name}");
        }
    }

    fn shared(path: &str) -> Option<PathBuf> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(path);
        if !path.exists() {
            println!("skipped: {} is not there", path.display());
            return None;
        }
        Some(path)
    }

    fn open_folder(path: &Path) -> (TensorStore, Layout) {
        let store = block_on(TensorStore::open(&FsDir::open(path).unwrap())).unwrap();
        let config: Value =
            serde_json::from_slice(&std::fs::read(path.join("config.json")).unwrap()).unwrap();
        let layout =
            block_on(Layout::open(config.get("quantization_config"), &store, &OpenOptions::default()))
                .unwrap();
        (store, layout)
    }

    fn packed_modules(store: &TensorStore) -> Vec<String> {
        store.names().filter_map(|name| name.strip_suffix(".weight_packed")).map(str::to_owned).collect()
    }

    /// The hashes come from an independent decoder (Python integers as bit streams, numpy products). It hashed the
    /// weights of the same files as little-endian f32, in the order of names.
    #[test]
    fn folders_of_llm_compressor_decode_to_the_same_weights() {
        let cases = [
            ("awq-w4-g128-asym", "79f64be4f3353f26f98423e085fcb071e8a7836a64620f8c0a2304a796aa416b"),
            ("gptq-w4-g32-asym", "314195f2665cf7a6c5e0a2d0a8755326e91b87d4c6533b286be8521044273836"),
            ("rtn-w4-g128-sym", "bc60f1c23d9826fd4fbc0e07a7c47ed80fbda2c0e4929202f4b98bf1b693c6aa"),
            ("rtn-w4-g32-sym", "36d237f1cd10f909aa0e3e446349d6ad781500923b6d7893ded1accdb71e19d8"),
            ("rtn-w8-channel", "4e976643931195a0025b20eb7e49a175d83a6ecc2ec1d7d2fce6b3d13c8ec352"),
        ];
        for (name, expected) in cases {
            let Some(path) = shared(&format!("peers/llmcompressor-{name}")) else { return };
            let (store, layout) = open_folder(&path);
            let modules = packed_modules(&store);
            assert_eq!(modules.len(), 14);
            let mut hash = Sha256::new();
            for module in &modules {
                let read = block_on(layout.read_packed(&store, module)).unwrap();
                let tensor = read.affine().unwrap();
                for weight in restored(tensor) {
                    hash.update(weight.to_le_bytes());
                }
                // Writing it again gives the same tensors.
                for (tensor_name, info, bytes) in written(module, tensor) {
                    assert_eq!(store.require(&tensor_name).unwrap(), &info);
                    assert!(block_on(store.read(&tensor_name)).unwrap() == bytes, "{name} {tensor_name}");
                }
            }
            let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, expected, "{name}");
            let head = layout.module(&store, "model.embed_tokens").unwrap();
            assert!(matches!(head, ModuleStorage::Dense { dtype: DType::F32, rows: 2048, cols: 128, .. }));
        }
    }

    /// The largest accepted share of codes that move by one step if scales are rounded to f16 before the codes are
    /// computed. Measured: 3421, 1037 and 3439 of 393,216 codes for the three cases. At groups of 32, most of them are
    /// negative weights of the largest magnitude, which lie exactly between the two lowest codes before the scale is
    /// rounded.
    const MOVED_BY_F16_SCALES: f64 = 0.01;

    #[test]
    fn round_to_nearest_is_that_of_llm_compressor() {
        let group = |size| (Bits::Four, Granularity::Group(size));
        let cases = [
            ("w4-g32-sym", group(32)),
            ("w4-g128-sym", group(128)),
            ("w8-channel", (Bits::Eight, Granularity::Channel)),
        ];
        for (name, (bits, granularity)) in cases {
            let (Some(peer), Some(source)) =
                (shared(&format!("peers/llmcompressor-rtn-{name}")), shared("models/story-llama-0.66M"))
            else {
                return;
            };
            let (peer, peer_layout) = open_folder(&peer);
            let (source, source_layout) = open_folder(&source);
            let scheme = Scheme::Integer { bits, granularity, symmetric: true };
            let (mut moved, mut all) = (0, 0);
            for module in packed_modules(&peer) {
                let ModuleStorage::Dense { tensor, dtype, rows, cols } =
                    source_layout.module(&source, &module).unwrap()
                else {
                    panic!("the source is dense");
                };
                let mut weights = vec![0.0; rows * cols];
                crate::dtype::decode_f32(dtype, &block_on(source.read(&tensor)).unwrap(), &mut weights)
                    .unwrap();
                let expected = block_on(peer_layout.read_packed(&peer, &module)).unwrap();
                let expected = expected.affine().unwrap();
                assert!(quantize(scheme, cols, &weights, ScaleType::F32) == *expected, "{name} {module}");

                let halves = quantize(scheme, cols, &weights, ScaleType::F16);
                all += rows * cols;
                for row in 0..rows {
                    for col in 0..cols {
                        let step = halves.code(row, col).abs_diff(expected.code(row, col));
                        assert!(step <= 1);
                        moved += step;
                    }
                }
            }
            println!("{name}: f16 scales move {moved} of {all} codes by one step");
            assert!(f64::from(moved) / (all as f64) < MOVED_BY_F16_SCALES, "{name}: {moved} of {all}");
        }
    }

    fn integer(bits: Bits, granularity: Granularity, symmetric: bool) -> Scheme {
        Scheme::Integer { bits, granularity, symmetric }
    }

    #[test]
    fn an_embedding_of_eight_bits_is_written_as_bytes() {
        let module = "model.embed_tokens";
        for (granularity, symmetric) in [(Granularity::Channel, true), (Granularity::Group(4), false)] {
            let scheme = integer(Bits::Eight, granularity, symmetric);
            let tensor = quantize(scheme, 8, &synthetic("table", 40, 1.0), ScaleType::F16);
            let tensors = written(module, &tensor);
            assert_eq!(
                (tensors[0].0.as_str(), &tensors[0].1),
                ("model.embed_tokens.weight", &TensorInfo::new(DType::I8, [5, 8]))
            );
            assert_eq!(tensors[0].2[0] as i8, (tensor.code(0, 0) as i32 - 128) as i8);
            assert_eq!(read(&config_for(module, scheme), tensors, module).unwrap().1, tensor);
        }
    }

    #[test]
    fn ternary_weights_come_back_as_two_bit_ones() {
        let weights = synthetic("ternary", 5 * 21, 1.0);
        for granularity in [Granularity::Channel, Granularity::Tensor] {
            let mut quantizer = TernaryQuantizer::new(granularity, 5, 21, ScaleType::F16, None).unwrap();
            quantizer.observe_rows(&weights).unwrap();
            quantizer.push_rows(&weights).unwrap();
            let tensor = quantizer.finish().unwrap();
            let config = config_for(MODULE, tensor.scheme());
            let (storage, found) = read(&config, written(MODULE, &tensor), MODULE).unwrap();
            assert_eq!(storage.activations(), Activations::Int8);
            assert_eq!(found.scheme(), integer(Bits::Two, granularity, true));
            assert_eq!(restored(&found), restored(&tensor));
        }
    }

    #[test]
    fn the_config_names_what_is_not_the_rule() {
        let four = integer(Bits::Four, Granularity::Group(32), true);
        let channel = integer(Bits::Four, Granularity::Channel, true);
        let eight = integer(Bits::Eight, Granularity::Channel, true);
        let entry = |module: &str, scheme| (module.to_owned(), format(scheme));
        let config = |entries: &[_], activations| {
            TARGET.quantization_config(entries, &["lm_head".to_owned()], activations).unwrap()
        };

        let one = config(&[entry("a", four), entry("b", four)], Activations::F32);
        assert_eq!(
            one,
            json!({
                "config_groups": {"group_0": {
                    "format": "pack-quantized",
                    "input_activations": null,
                    "output_activations": null,
                    "targets": ["Linear"],
                    "weights": {
                        "dynamic": false, "group_size": 32, "num_bits": 4, "strategy": "group", "symmetric": true,
                        "type": "int"
                    },
                }},
                "format": "pack-quantized",
                "global_compression_ratio": null,
                "ignore": ["lm_head"],
                "kv_cache_scheme": null,
                "quant_method": "compressed-tensors",
                "quantization_status": "compressed",
            })
        );

        let entries = [
            entry("z", channel),
            entry("a", four),
            entry("b", four),
            entry("c", channel),
            entry("d", four),
            entry("model.embed_tokens", eight),
        ];
        let several = config(&entries, Activations::Int8);
        let groups = &several["config_groups"];
        assert_eq!(groups["group_0"]["targets"], json!(["Linear"]));
        assert_eq!(groups["group_0"]["weights"]["group_size"], 32);
        assert_eq!(groups["group_1"]["targets"], json!(["c", "z"]));
        assert_eq!(groups["group_1"]["weights"]["strategy"], "channel");
        assert_eq!(groups["group_1"]["weights"]["group_size"], Value::Null);
        assert_eq!(groups["group_1"]["input_activations"]["num_bits"], 8);
        assert_eq!(groups["group_2"]["targets"], json!(["model.embed_tokens"]));
        assert_eq!(groups["group_2"]["format"], "int-quantized");
        assert_eq!(groups["group_2"]["input_activations"], Value::Null);
        assert_eq!(several["format"], "mixed-precision");

        assert_eq!(config(&[], Activations::F32), Value::Null);
    }

    /// A valid module for tests to corrupt: INT4, groups of 16, asymmetric, 8 x 32.
    fn sound() -> (Value, Tensors) {
        let scheme = integer(Bits::Four, Granularity::Group(16), false);
        let tensor = quantize(scheme, 32, &synthetic("sound", 8 * 32, 1.0), ScaleType::F16);
        (config_for(MODULE, scheme), written(MODULE, &tensor))
    }

    fn tensor_of<'t>(tensors: &'t mut Tensors, suffix: &str) -> &'t mut (String, TensorInfo, Vec<u8>) {
        let name = format!("{MODULE}.{suffix}");
        tensors.iter_mut().find(|(found, ..)| *found == name).unwrap()
    }

    #[test]
    fn contradictions_are_errors_that_name_the_module() {
        type Spoil = fn(&mut Value, &mut Tensors);
        let cases: [(&str, ErrorCode, Spoil); 21] = [
            (
                "the tensor `model.layers.0.mlp.up_proj.weight_scale` is missing",
                ErrorCode::InvalidCheckpoint,
                |_, t| {
                    t.retain(|(name, ..)| !name.ends_with("_scale"));
                },
            ),
            ("weight_shape` is missing", ErrorCode::InvalidCheckpoint, |_, t| {
                t.retain(|(name, ..)| !name.ends_with("_shape"));
            }),
            ("weight_zero_point` is missing", ErrorCode::InvalidCheckpoint, |_, t| {
                t.retain(|(name, ..)| !name.ends_with("_point"));
            }),
            ("up_proj.weight` is missing", ErrorCode::InvalidCheckpoint, |_, t| {
                t.retain(|(name, ..)| !name.ends_with("_packed"));
            }),
            ("[8, 9223372036854775807] at 4 bits disagrees", ErrorCode::InvalidCheckpoint, |_, t| {
                tensor_of(t, "weight_shape").2[8..].copy_from_slice(&i64::MAX.to_le_bytes());
            }),
            ("[8, -32] at 4 bits disagrees", ErrorCode::InvalidCheckpoint, |_, t| {
                tensor_of(t, "weight_shape").2[8..].copy_from_slice(&(-32i64).to_le_bytes());
            }),
            ("[9, 32] at 4 bits disagrees", ErrorCode::InvalidCheckpoint, |_, t| {
                tensor_of(t, "weight_shape").2[0] = 9
            }),
            ("[8, 33] at 4 bits disagrees", ErrorCode::InvalidCheckpoint, |_, t| {
                tensor_of(t, "weight_shape").2[8] = 33
            }),
            ("row 0 has bits set after its last code", ErrorCode::InvalidCheckpoint, |_, t| {
                tensor_of(t, "weight_shape").2[8] = 31;
            }),
            ("expected shape [8, 2] but found [2, 8]", ErrorCode::InvalidCheckpoint, |_, t| {
                tensor_of(t, "weight_scale").1 = TensorInfo::new(DType::F16, [2, 8]);
            }),
            ("expected finite scales but found inf at index 0", ErrorCode::NonFinite, |_, t| {
                tensor_of(t, "weight_scale").2[..2].copy_from_slice(&[0, 0x7c]);
            }),
            (
                "expected scales of type F16, BF16 or F32 but found I16",
                ErrorCode::UnsupportedFormat,
                |_, t| {
                    tensor_of(t, "weight_scale").1.dtype = DType::I16;
                },
            ),
            ("expected values of type I32 but found F32", ErrorCode::InvalidCheckpoint, |_, t| {
                tensor_of(t, "weight_packed").1.dtype = DType::F32;
            }),
            ("expected shape [1, 2] but found [2, 1]", ErrorCode::InvalidCheckpoint, |_, t| {
                tensor_of(t, "weight_zero_point").1 = TensorInfo::new(DType::I32, [2, 1]);
            }),
            (
                "expected one of `weight` and `weight_packed` but found both",
                ErrorCode::InvalidCheckpoint,
                |_, t| {
                    t.push((format!("{MODULE}.weight"), TensorInfo::new(DType::F16, [1, 1]), vec![0; 2]));
                },
            ),
            ("expected group 0 to have 16 columns but found 32", ErrorCode::UnsupportedFormat, |_, t| {
                t.push((format!("{MODULE}.weight_g_idx"), TensorInfo::new(DType::I32, [32]), vec![0; 128]));
            }),
            ("expected shape [32] but found [31]", ErrorCode::InvalidCheckpoint, |_, t| {
                t.push((format!("{MODULE}.weight_g_idx"), TensorInfo::new(DType::I32, [31]), vec![0; 124]));
            }),
            ("expected groups from 0 to 1 but found group 16843009", ErrorCode::InvalidCheckpoint, |_, t| {
                t.push((format!("{MODULE}.weight_g_idx"), TensorInfo::new(DType::I32, [32]), vec![1; 128]));
            }),
            ("has no group for them, or ignores them", ErrorCode::InvalidCheckpoint, |c, _| {
                c["ignore"] = json!(["re:.*up_proj"]);
            }),
            ("expected no zero points for symmetric weights", ErrorCode::InvalidCheckpoint, |c, _| {
                c["config_groups"]["group_0"]["weights"]["symmetric"] = json!(true);
            }),
            ("expected the format `int-quantized`", ErrorCode::InvalidCheckpoint, |c, _| {
                c["config_groups"]["group_0"]["format"] = json!("int-quantized");
            }),
        ];
        let (config, tensors) = sound();
        read(&config, tensors, MODULE).unwrap();
        for (message, code, spoil) in cases {
            let (mut config, mut tensors) = sound();
            spoil(&mut config, &mut tensors);
            let error = read(&config, tensors, MODULE).unwrap_err();
            assert!(error.to_string().contains(message), "expected {message:?} but found {error}");
            assert!(error.to_string().contains(MODULE), "{error}");
            assert_eq!(error.code(), code, "{error}");
        }
    }

    #[test]
    fn what_configs_ask_for_and_this_crate_does_not_do_is_an_error() {
        let group = "/config_groups/group_0";
        let int8 =
            json!({"num_bits": 8, "type": "int", "symmetric": true, "dynamic": true, "strategy": "token"});
        let with = |key: &str, value: Value| {
            let mut args = int8.clone();
            args[key] = value;
            args
        };
        let cases = [
            ("weights/num_bits", json!(5)),
            ("weights/num_bits", json!("4")),
            ("weights/type", json!("float")),
            ("weights/strategy", json!("block")),
            ("weights/group_size", json!(0)),
            ("weights/group_size", json!(-1)),
            ("weights/group_size", json!(1e30)),
            ("weights/actorder", json!("random")),
            ("weights/actorder", json!(true)),
            ("weights/dynamic", json!(true)),
            ("weights", Value::Null),
            ("output_activations", int8.clone()),
            ("input_activations", with("num_bits", json!(4))),
            ("input_activations", with("dynamic", json!(false))),
            ("input_activations", with("symmetric", json!(false))),
            ("input_activations", with("strategy", json!("tensor"))),
            ("input_activations", with("type", json!("float"))),
            ("format", json!("marlin-24")),
            ("targets", json!(["re:("])),
            ("", json!(["Linear"])),
            ("/kv_cache_scheme", json!({"num_bits": 8})),
            ("/transform_config", json!({"config_groups": {}})),
            ("/sparsity_config", json!({"format": "sparse-24-bitmask"})),
            ("/config_groups", json!({})),
            ("/config_groups", json!([])),
            ("/ignore", json!("lm_head")),
            ("/quant_method", json!("gptq")),
            ("/quant_method", Value::Null),
        ];
        for (path, value) in cases {
            let (mut config, tensors) = sound();
            let pointer = match path.strip_prefix('/') {
                Some(top) => format!("/{top}"),
                None if path.is_empty() => group.to_owned(),
                None => format!("{group}/{path}"),
            };
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            config.pointer_mut(parent).unwrap()[key] = value.clone();
            let error = read(&config, tensors, MODULE).expect_err(&format!("{pointer} {value}"));
            assert!(error.to_string().contains("quantization_config"), "{pointer} {value}: {error}");
        }
        let fine = [
            ("weights/actorder", json!("static")),
            ("weights/actorder", json!("weight")),
            ("weights/actorder", json!("group")),
            ("weights/actorder", json!(false)),
            ("weights/type", json!("INT")),
            ("input_activations", int8.clone()),
            ("format", Value::Null),
            ("/sparsity_config", json!({"format": "dense"})),
            ("/kv_cache_scheme", Value::Null),
            ("/transform_config", json!({})),
            ("/ignore", Value::Null),
        ];
        for (path, value) in fine {
            let (mut config, tensors) = sound();
            let pointer = path.strip_prefix('/').map_or(format!("{group}/{path}"), |top| format!("/{top}"));
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            config.pointer_mut(parent).unwrap()[key] = value.clone();
            read(&config, tensors, MODULE).unwrap_or_else(|error| panic!("{pointer} {value}: {error}"));
        }
    }

    #[test]
    fn unpacked_zero_points_of_old_files_are_read() {
        let (config, mut tensors) = sound();
        let expected = read(&config, tensors.clone(), MODULE).unwrap().1;
        let zeros = tensor_of(&mut tensors, "weight_zero_point");
        zeros.1 = TensorInfo::new(DType::I8, [8, 2]);
        zeros.2 = expected.zero_points().unwrap().iter().map(|zero| zero.wrapping_sub(8)).collect();
        assert_eq!(read(&config, tensors.clone(), MODULE).unwrap().1, expected);
        tensor_of(&mut tensors, "weight_zero_point").2[3] = 8;
        let error = read(&config, tensors, MODULE).unwrap_err();
        assert!(error.to_string().ends_with("expected values from -8 to 7 but found 8"), "{error}");
    }

    fn any_packed() -> impl Strategy<Value = PackedTensor> {
        let bits = prop::sample::select(vec![Bits::Two, Bits::Three, Bits::Four, Bits::Eight]);
        let scale_type = prop::sample::select(vec![ScaleType::F16, ScaleType::BF16, ScaleType::F32]);
        let granularity =
            (1usize..=4).prop_map(|n| if n == 4 { Granularity::Channel } else { Granularity::Group(n * 3) });
        let shape = (1usize..70, 1usize..5);
        (bits, granularity, any::<bool>(), scale_type, shape, any::<u64>(), any::<bool>()).prop_map(
            |(bits, granularity, symmetric, scale_type, (rows, blocks), seed, reordered)| {
                let cols = match granularity {
                    Granularity::Group(size) => size * blocks,
                    _ => blocks * 7,
                };
                let weights = synthetic(&seed.to_string(), rows * cols, 2.0);
                let tensor = quantize(integer(bits, granularity, symmetric), cols, &weights, scale_type);
                let Granularity::Group(size) = granularity else { return tensor };
                // The reader's order: columns keep their order inside a group.
                let mut g_idx = tensor.g_idx();
                if reordered {
                    g_idx.reverse();
                    g_idx.rotate_left(1);
                }
                tensor.with_column_order(column_order::order_of_groups(&g_idx, size).unwrap()).unwrap()
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn whatever_is_written_is_read_again(tensor in any_packed(), embedding: bool) {
            let module = if embedding { "model.embed_tokens" } else { MODULE };
            let entries = [(module.to_owned(), PackedFormat::from(&tensor))];
            let config = TARGET.quantization_config(&entries, &[], Activations::F32).unwrap();
            prop_assert_eq!(config.to_string().contains("actorder"), tensor.column_order().is_some());
            let (_, found) = read(&config, written(module, &tensor), module).unwrap();
            prop_assert_eq!(found, tensor);
        }

        /// Small tensors of any type and shape under the relevant names give a result or an error, never a panic.
        #[test]
        fn no_tensors_make_the_reader_panic(
            specs in prop::collection::vec(
                (0usize..6, prop::sample::select(vec![DType::I8, DType::I32, DType::I64, DType::F16, DType::F32]),
                 prop::collection::vec(0u64..6, 0..4), any::<u64>()),
                0..7,
            ),
            bits in prop::sample::select(vec![2, 3, 4, 8]),
            symmetric: bool,
            strategy in prop::sample::select(vec!["group", "channel", "tensor"]),
            group_size in 1i64..6,
            (rows, cols) in (-1i64..6, -1i64..40),
        ) {
            let suffixes = ["weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"];
            let mut tensors: BTreeMap<String, (TensorInfo, Vec<u8>)> = BTreeMap::new();
            let shape: Vec<u8> = [rows, cols].iter().flat_map(|dim| dim.to_le_bytes()).collect();
            tensors.insert(format!("{MODULE}.weight_shape"), (TensorInfo::new(DType::I64, [2]), shape));
            for (suffix, dtype, dims, seed) in specs {
                let info = TensorInfo::new(dtype, dims);
                let len = info.byte_len().unwrap() as usize;
                let bytes = seed.to_le_bytes().iter().copied().cycle().take(len).collect();
                tensors.insert(format!("{MODULE}.{}", suffixes[suffix]), (info, bytes));
            }
            let tensors = tensors.into_iter().map(|(name, (info, bytes))| (name, info, bytes)).collect();
            let config = json!({
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"targets": ["Linear"], "weights": {
                    "num_bits": bits, "symmetric": symmetric, "strategy": strategy, "group_size": group_size}}},
            });
            let _ = read(&config, tensors, MODULE);
        }
    }
}
