//! The GPTQ writer against GPTQModel's own words and against the reader.

use super::*;

fn any_packed() -> impl Strategy<Value = PackedTensor> {
    let bits = prop::sample::select(vec![Bits::Two, Bits::Three, Bits::Four, Bits::Eight]);
    let granularity =
        prop::sample::select(vec![Granularity::Channel, Granularity::Group(16), Granularity::Group(32)]);
    (bits, granularity, any::<bool>(), 1usize..3, 1usize..4, any::<u64>(), any::<bool>()).prop_map(
        |(bits, granularity, symmetric, rows, cols, seed, reordered)| {
            let (rows, cols) = (rows * 32, cols * 32);
            let scheme = Scheme::Integer { bits, granularity, symmetric };
            let mut state = seed | 1;
            let mut next = move || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state
            };
            let codes: Vec<u32> = (0..rows)
                .flat_map(|_| {
                    let row: Vec<u8> = (0..cols).map(|_| next() as u8 & bits.max_code() as u8).collect();
                    let mut words = vec![0; scheme.words_per_row(cols)];
                    packing::pack_row(&row, bits.get(), &mut words);
                    words
                })
                .collect();
            let count = granularity.scale_count(rows, cols);
            let scales = (0..count).map(|_| f16::from_f32((next() % 1000) as f32 / 500.0 - 1.0)).collect();
            let zeros = (0..count).map(|_| (next() as u8) & bits.max_code() as u8).collect();
            let zeros = (!symmetric).then_some(zeros);
            let tensor = PackedTensor::new(scheme, rows, cols, codes, Scales::F16(scales), zeros).unwrap();
            let Granularity::Group(size) = granularity else { return tensor };
            let mut g_idx = tensor.g_idx();
            if reordered {
                g_idx.reverse();
                g_idx.rotate_left(3);
            }
            tensor.with_column_order(column_order::order_of_groups(&g_idx, size).unwrap()).unwrap()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_written_is_read_again(tensor in any_packed(), v2: bool) {
        let target = TargetLayout::Gptq(if v2 { GptqZeros::V2 } else { GptqZeros::V1 });
        let format = PackedFormat::from(&tensor);
        let planned = target.planned_tensors(MODULE, tensor.rows(), tensor.cols(), format);
        let encoded = target.encode(MODULE, tensor.clone(), format).unwrap();
        let mut tensors = Vec::new();
        for ((name, info), (encoded_name, bytes)) in planned.into_iter().zip(encoded) {
            prop_assert_eq!(&name, &encoded_name);
            prop_assert_eq!(info.byte_len(), Some(bytes.len() as u64));
            tensors.push((name, info, bytes));
        }
        let config = target.quantization_config(&[(MODULE.to_owned(), format)], &[], Activations::F32).unwrap();
        let (store, layout) = open(&config, tensors, OpenOptions::default()).unwrap();
        prop_assert!(layout.warnings().is_empty());
        prop_assert_eq!(layout.name(), target.name());
        prop_assert_eq!(block_on(layout.read_packed(&store, MODULE)).unwrap(), tensor.into());
    }
}

#[test]
fn the_config_says_what_is_not_the_rule() {
    let format = |bits, granularity| PackedFormat {
        coding: Scheme::symmetric(bits, granularity).into(),
        scale_type: crate::quant::ScaleType::F16,
        reordered: false,
    };
    let four = format(Bits::Four, Granularity::Group(32));
    let eight = format(Bits::Eight, Granularity::Channel);
    let name = |layer: usize, tail: &str| format!("model.layers.{layer}.{tail}");
    let target = TargetLayout::Gptq(GptqZeros::V1);
    let entries = [(name(0, "mlp.up_proj"), four), (name(1, "mlp.up_proj"), four)];
    let config = target.quantization_config(&entries, &["lm_head".to_owned()], Activations::F32).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        config,
        json!({
            "bits": 4, "checkpoint_format": "gptq", "desc_act": false, "format": "gptq", "group_size": 32,
            "lm_head": false, "meta": {"quantizer": [format!("lowbit:{version}")]}, "pack_dtype": "int32",
            "quant_method": "gptq", "sym": true,
        })
    );
    let entries = [entries[0].clone(), entries[1].clone(), (name(0, "mlp.gate_proj"), eight)];
    let ignore = ["lm_head".to_owned(), name(0, "mlp.down_proj"), name(1, "mlp.down_proj")];
    let config = target.quantization_config(&entries, &ignore, Activations::F32).unwrap();
    assert_eq!(
        config["dynamic"],
        json!({
            r"-:^model\.layers\.0\.mlp\.down_proj$": {},
            r"-:^model\.layers\.1\.mlp\.down_proj$": {},
            r"+:^model\.layers\.0\.mlp\.gate_proj$": {"bits": 8, "group_size": -1, "sym": true},
        })
    );
    assert_eq!(config["modules_in_block_to_quantize"], json!([["mlp.gate_proj", "mlp.up_proj"]]));
}

#[test]
fn what_the_layout_has_no_room_for_is_said() {
    let integer = |bits, granularity| Scheme::Integer { bits, granularity, symmetric: true };
    let target = TargetLayout::Gptq(GptqZeros::V1);
    let cases = [
        (64, 64, integer(Bits::Three, Granularity::Group(32)), ""),
        (64, 172, integer(Bits::Four, Granularity::Channel), "4 bits of 172 columns do not fill whole words"),
        (64, 40, integer(Bits::Three, Granularity::Channel), "3 bits of 40 columns do not fill whole words"),
        (63, 64, integer(Bits::Four, Granularity::Channel), "4 bits of 63 rows do not fill whole words"),
        (
            64,
            96,
            integer(Bits::Four, Granularity::Group(48)),
            "groups of 16, 32, 64, ..., 1024 columns, not of 48",
        ),
        (64, 96, integer(Bits::Four, Granularity::Group(64)), "groups of 64 do not divide 96 columns"),
        (64, 64, integer(Bits::Four, Granularity::Tensor), "not one per tensor"),
        (64, 64, Scheme::Ternary { granularity: Granularity::Tensor }, "integer codes, not ternary-tensor"),
    ];
    for (rows, cols, scheme, why) in cases {
        let found = target.can_hold(rows, cols, scheme).err().unwrap_or_default();
        assert!(
            found.contains(why) && found.is_empty() == why.is_empty(),
            "{rows} x {cols} {scheme}: {found}"
        );
    }
    let fit = target.fit(64, 96, integer(Bits::Four, Granularity::Group(128)));
    assert_eq!(fit.scheme, Some(integer(Bits::Four, Granularity::Group(32))));
}

/// The words of a golden tensor as little-endian bytes, and its shape.
fn golden_words(value: &Value) -> (TensorInfo, Vec<u8>) {
    let dims: Vec<u64> = value["shape"].as_array().unwrap().iter().map(|dim| dim.as_u64().unwrap()).collect();
    let words = value["words"].as_array().unwrap().iter().map(|word| word.as_i64().unwrap() as i32 as u32);
    (TensorInfo::new(DType::I32, dims), i32s(words))
}

/// GPTQModel's golden files decode to the intended weights, and are written again with the same words.
#[test]
fn the_words_are_those_of_gptqmodel() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/gptq.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let cases = golden["gptq"].as_array().unwrap();
    assert_eq!(cases.len(), 11);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        for (version, zeros) in [("gptq", "qzeros_v1"), ("gptq_v2", "qzeros_v2")] {
            let mut tensors = Tensors::new();
            for (suffix, key) in [("qweight", "qweight"), ("qzeros", zeros), ("g_idx", "g_idx")] {
                let (info, bytes) = golden_words(&case[key]);
                tensors.push((format!("{MODULE}.{suffix}"), info, bytes));
            }
            let scales =
                case["scales"].as_array().unwrap().iter().map(|s| f16::from_f64(s.as_f64().unwrap()));
            let groups = tensors[1].1.shape.dims()[0];
            let info = TensorInfo::new(DType::F16, [groups, 32]);
            tensors.push((format!("{MODULE}.scales"), info, scales.flat_map(f16::to_le_bytes).collect()));
            let config = config(
                case["bits"].as_u64().unwrap() as u32,
                case["group_size"].as_i64().unwrap(),
                case["symmetric"].as_bool().unwrap(),
                json!({"checkpoint_format": version, "meta": {"quantizer": ["gptqmodel:7.7.0"]}}),
            );
            let (_, tensor) = read(&config, tensors.clone()).unwrap();
            let mut weights = vec![0.0; 64];
            crate::quant::dequantize::rows(&tensor, 31..32, &mut weights);
            let expected: Vec<f32> = case["weights_of_last_output"]
                .as_array()
                .unwrap()
                .iter()
                .map(|weight| weight.as_f64().unwrap() as f32)
                .collect();
            assert_eq!(weights, expected, "{name} {version}");

            let target = TargetLayout::Gptq(if version == "gptq" { GptqZeros::V1 } else { GptqZeros::V2 });
            let format = PackedFormat::from(&tensor);
            let encoded: BTreeMap<String, Vec<u8>> =
                target.encode(MODULE, tensor, format).unwrap().into_iter().collect();
            for (tensor, _, bytes) in tensors {
                assert_eq!(encoded[&tensor], bytes, "{name} {version} {tensor}");
            }
        }
    }
}
