//! AWQ against files packed field by field according to the tools' documentation.

use super::*;
use crate::error::ErrorCode;
use crate::layout::{Layout, OpenOptions, TargetLayout};
use crate::quant::{ScaleType, Scales, dequantize};
use crate::task::block_on;
use half::f16;
use proptest::prelude::*;
use std::collections::BTreeMap;

const MODULE: &str = "model.layers.0.mlp.up_proj";

type Tensors = Vec<(String, TensorInfo, Vec<u8>)>;

fn read(config: &Value, tensors: Tensors) -> Result<PackedTensor> {
    let store = TensorStore::in_memory("test", tensors, BTreeMap::new()).unwrap();
    let layout = block_on(Layout::open(Some(config), &store, &OpenOptions::default()))?;
    layout.module(&store, MODULE)?;
    Ok(block_on(layout.read_packed(&store, MODULE))?.affine().unwrap().clone())
}

/// A file of 24 outputs and 48 inputs in groups of 16, and its weights `[out, in]`.
fn documented() -> (Tensors, Vec<f32>) {
    let (inputs, outputs, group_size) = (48usize, 24usize, 16usize);
    let groups = inputs / group_size;
    let code = |input: usize, output: usize| (input * 7 + output * 5 + input * output) as u32 % 16;
    let zero = |group: usize, output: usize| (group * 3 + output * 11) as u32 % 16;
    let scale = |group: usize, output: usize| (output as f32 - 11.5) / 32.0 + group as f32;
    // The outputs held by a word's fields, from the lowest four bits up.
    let order = [0, 2, 4, 6, 1, 3, 5, 7];
    let pack = |rows: usize, value: &dyn Fn(usize, usize) -> u32| -> Vec<u8> {
        let mut bytes = Vec::new();
        for row in 0..rows {
            for word in 0..outputs / 8 {
                let fields = (0..8).map(|field| value(row, word * 8 + order[field]) << (4 * field));
                bytes.extend(fields.fold(0u32, |all, field| all | field).to_le_bytes());
            }
        }
        bytes
    };
    let scales =
        (0..groups * outputs).flat_map(|i| f16::from_f32(scale(i / outputs, i % outputs)).to_le_bytes());
    let info = |dtype, rows: usize, cols: usize| TensorInfo::new(dtype, [rows as u64, cols as u64]);
    let tensors = vec![
        (format!("{MODULE}.qweight"), info(DType::I32, inputs, outputs / 8), pack(inputs, &code)),
        (format!("{MODULE}.qzeros"), info(DType::I32, groups, outputs / 8), pack(groups, &zero)),
        (format!("{MODULE}.scales"), info(DType::F16, groups, outputs), scales.collect()),
    ];
    let weights = (0..outputs * inputs).map(|i| {
        let (output, input) = (i / inputs, i % inputs);
        let group = input / group_size;
        (code(input, output) as f32 - zero(group, output) as f32) * scale(group, output)
    });
    (tensors, weights.collect())
}

fn config() -> Value {
    json!({"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": true, "version": "gemm"})
}

#[test]
fn every_spelling_of_the_config_reads_as_documented() {
    let (tensors, weights) = documented();
    let cases = [
        config(),
        json!({"zero_point": true, "q_group_size": 16, "w_bit": 4, "version": "GEMM"}),
        json!({"method": "awq", "bits": 4, "group_size": 16, "format": "gemm", "zero_point": false, "dynamic": {}}),
        json!({"quant_method": "awq", "bits": 4, "group_size": 16, "modules_to_not_convert": null}),
        json!({"quant_method": "awq", "bits": 4, "group_size": 64, "dynamic": {".*up_proj": {"group_size": 16}}}),
    ];
    for config in cases {
        let tensor = read(&config, tensors.clone()).unwrap();
        let mut found = vec![0.0; weights.len()];
        dequantize::rows(&tensor, 0..24, &mut found);
        assert_eq!(found, weights, "{config}");
    }
}

#[test]
fn contradictions_are_errors_that_name_the_module() {
    type Spoil = fn(&mut Tensors);
    let cases: [(&str, ErrorCode, Spoil); 7] = [
        ("up_proj.qzeros` is missing", ErrorCode::InvalidCheckpoint, |t| drop(t.remove(1))),
        ("up_proj.scales` is missing", ErrorCode::InvalidCheckpoint, |t| drop(t.remove(2))),
        ("but found both", ErrorCode::InvalidCheckpoint, |t| {
            t.push((format!("{MODULE}.weight"), TensorInfo::new(DType::F16, [1, 1]), vec![0; 2]));
        }),
        ("expected values of type I32 but found F32", ErrorCode::InvalidCheckpoint, |t| {
            t[0].1.dtype = DType::F32
        }),
        ("expected shape [3, 3] but found [9]", ErrorCode::InvalidCheckpoint, |t| {
            t[1].1 = TensorInfo::new(DType::I32, [9]);
        }),
        ("expected shape [3, 24] but found [24, 3]", ErrorCode::InvalidCheckpoint, |t| {
            t[2].1 = TensorInfo::new(DType::F16, [24, 3]);
        }),
        ("expected finite scales but found NaN", ErrorCode::NonFinite, |t| {
            t[2].2[..2].copy_from_slice(&[1, 0x7c]);
        }),
    ];
    for (message, code, spoil) in cases {
        let mut tensors = documented().0;
        spoil(&mut tensors);
        let error = read(&config(), tensors).unwrap_err();
        assert!(error.to_string().contains(message), "expected {message:?} but found {error}");
        assert!(error.to_string().contains(MODULE), "{error}");
        assert_eq!(error.code(), code, "{error}");
    }
}

#[test]
fn what_is_not_read_is_named() {
    for (key, value, word) in [
        ("version", json!("gemv"), "`gemv`"),
        ("version", json!("gemv_fast"), "`gemv_fast`"),
        ("version", json!("marlin"), "`marlin`"),
        ("version", json!("ipex"), "`ipex`"),
        ("format", json!("llm-awq"), "`llm-awq`"),
        ("bits", json!(3), "found 3"),
        ("group_size", json!(0), "found 0"),
        ("pack_dtype", json!("int16"), "`int16`"),
        ("dynamic", json!({"a": {"bits": 8}}), "found 8"),
        ("bits", json!(null), "quantization_config"),
    ] {
        let mut config = config();
        config[key] = value;
        let error = read(&config, documented().0).unwrap_err();
        assert!(error.to_string().contains(word), "{config}: {error}");
    }
}

#[test]
fn the_layout_holds_one_group_size() {
    let format = |granularity, symmetric| PackedFormat {
        coding: Scheme::symmetric(Bits::Four, granularity).with_symmetry(symmetric).into(),
        scale_type: ScaleType::F16,
        reordered: false,
    };
    let entry = |module: &str, size| (module.to_owned(), format(Granularity::Group(size), true));
    let ignore = ["lm_head".to_owned(), "c".to_owned()];
    let config = quantization_config(&[entry("a", 32), entry("b", 32)], &ignore).unwrap();
    let expected = json!({
        "bits": 4, "group_size": 32, "modules_to_not_convert": ["c"], "quant_method": "awq", "version": "gemm",
        "zero_point": false
    });
    assert_eq!(config, expected);
    let error = quantization_config(&[entry("a", 32), entry("b", 64)], &[]).unwrap_err();
    assert!(error.to_string().contains("`a` is int4-g32-sym and `b` is int4-g64-sym"), "{error}");
    let channel = quantization_config(&[("a".to_owned(), format(Granularity::Channel, false))], &[]).unwrap();
    assert_eq!((&channel["group_size"], &channel["zero_point"]), (&json!(-1), &json!(true)));
    let three = Scheme::Integer { bits: Bits::Three, granularity: Granularity::Group(32), symmetric: true };
    assert!(TargetLayout::Awq.can_hold(8, 32, three).unwrap_err().contains("codes of 4 bits, not int3"));
    let reordered = PackedFormat { reordered: true, ..format(Granularity::Group(32), true) };
    assert!(TargetLayout::Awq.can_hold_as(8, 32, reordered).unwrap_err().contains("act-order"));
}

/// GPTQModel's golden files decode to the intended weights, and are written again with the same words.
#[test]
fn the_words_are_those_of_gptqmodel() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/gptq.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let cases = golden["awq"].as_array().unwrap();
    assert_eq!(cases.len(), 2);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let numbers = |value: &Value| -> Vec<f64> {
            value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
        };
        let words = |key: &str| {
            let dims: Vec<u64> = numbers(&case[key]["shape"]).into_iter().map(|dim| dim as u64).collect();
            let bytes = numbers(&case[key]["words"])
                .into_iter()
                .flat_map(|word| (word as i32).to_le_bytes())
                .collect();
            (format!("{MODULE}.{key}"), TensorInfo::new(DType::I32, dims), bytes)
        };
        let scales = numbers(&case["scales"]);
        let info = TensorInfo::new(DType::F16, [scales.len() as u64 / 32, 32]);
        let scales = scales.into_iter().flat_map(|scale| f16::from_f64(scale).to_le_bytes()).collect();
        let tensors = vec![words("qweight"), words("qzeros"), (format!("{MODULE}.scales"), info, scales)];
        let mut config = config();
        config["group_size"] = case["group_size"].clone();
        let tensor = read(&config, tensors.clone()).unwrap();
        let mut weights = vec![0.0; 64];
        dequantize::rows(&tensor, 31..32, &mut weights);
        let expected: Vec<f32> =
            numbers(&case["weights_of_last_output"]).into_iter().map(|weight| weight as f32).collect();
        assert_eq!(weights, expected, "{name}");
        let encoded = encode(MODULE, &tensor);
        for ((tensor, _, bytes), (name, found)) in tensors.into_iter().zip(encoded) {
            assert_eq!((&tensor, &bytes), (&name, &found));
        }
    }
}

proptest! {
    #[test]
    fn whatever_is_written_is_read_again(
        blocks in (1usize..5, 1usize..4),
        granularity in prop::sample::select(vec![Granularity::Channel, Granularity::Group(16), Granularity::Group(32)]),
        symmetric: bool,
        random in prop::collection::vec(any::<u32>(), 64),
    ) {
        let (rows, cols) = (blocks.0 * 8, blocks.1 * 32);
        let scheme = Scheme::Integer { bits: Bits::Four, granularity, symmetric };
        let words = scheme.words_per_row(cols);
        let codes = (0..rows * words).map(|i| random[i % 61].rotate_left(i as u32)).collect();
        let count = granularity.scale_count(rows, cols);
        let scales = (0..count).map(|i| f16::from_f32((random[i % 64] % 999) as f32 - 400.0)).collect();
        let zeros: Vec<u8> = (0..count).map(|i| (random[i % 59] >> 7) as u8 & 15).collect();
        let kept = (!symmetric).then(|| zeros.clone());
        let tensor = PackedTensor::new(scheme, rows, cols, codes, Scales::F16(scales), kept).unwrap();
        let format = PackedFormat::from(&tensor);
        let planned = TargetLayout::Awq.planned_tensors(MODULE, rows, cols, format);
        let encoded = TargetLayout::Awq.encode(MODULE, tensor.clone(), format).unwrap();
        let tensors: Tensors = planned.into_iter().zip(encoded).map(|((name, info), (_, bytes))| (name, info, bytes)).collect();
        let entries = [(MODULE.to_owned(), format)];
        let config = TargetLayout::Awq.quantization_config(&entries, &[], Activations::F32).unwrap();
        let found = read(&config, tensors).unwrap();
        // The layout always stores zero points.
        let expected_zeros = if symmetric { vec![8; count] } else { zeros };
        prop_assert_eq!(found.zero_points().unwrap(), expected_zeros);
        prop_assert_eq!(found.codes(), tensor.codes());
        prop_assert_eq!(found.scales(), tensor.scales());
    }

    /// Small tensors of any type and shape under the relevant names give a result or an error, never a panic.
    #[test]
    fn no_tensors_make_the_reader_panic(
        specs in prop::collection::vec(
            (0usize..4, prop::sample::select(vec![DType::I32, DType::F16, DType::F32]), prop::collection::vec(0u64..7, 0..3)),
            0..5,
        ),
        group_size in -1i64..9,
    ) {
        let mut tensors: BTreeMap<String, (TensorInfo, Vec<u8>)> = documented().0.into_iter()
            .map(|(name, info, bytes)| (name, (info, bytes))).collect();
        for (suffix, dtype, dims) in specs {
            let info = TensorInfo::new(dtype, dims);
            let bytes = vec![0x33; info.byte_len().unwrap() as usize];
            tensors.insert(format!("{MODULE}.{}", ["qweight", "qzeros", "scales", "weight"][suffix]), (info, bytes));
        }
        let tensors = tensors.into_iter().map(|(name, (info, bytes))| (name, info, bytes)).collect();
        let mut config = config();
        config["group_size"] = json!(group_size);
        let _ = read(&config, tensors);
    }
}
