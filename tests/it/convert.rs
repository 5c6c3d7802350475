//! Conversion between layouts is exact, or reports its losses.

use crate::support::difference::largest_difference;
use crate::support::{fixture, on_disk};
use lowbit::internals::format::sink::FsSinkDir;
use lowbit::internals::layout::{GptqZeros, ModuleStorage, TargetLayout};
use lowbit::internals::model::Checkpoint;
use lowbit::internals::model::names::Linear;
use lowbit::internals::pipeline::convert::ConversionPlan;
use lowbit::internals::pipeline::{ConvertOptions, QuantizeOptions, convert, plan_conversion, quantize};
use lowbit::internals::quant::{Bits, Granularity, Method, Scheme};
use lowbit::internals::task::{Silent, block_on};
use std::path::Path;

const CT: TargetLayout = TargetLayout::CompressedTensors;
const GPTQ: TargetLayout = TargetLayout::Gptq(GptqZeros::V1);
const GPTQ_V2: TargetLayout = TargetLayout::Gptq(GptqZeros::V2);
const AWQ: TargetLayout = TargetLayout::Awq;

fn open(path: &Path) -> Checkpoint {
    block_on(Checkpoint::open(on_disk(path))).unwrap()
}

fn planned(source: &Checkpoint, layout: TargetLayout, strict: bool) -> lowbit::Result<ConversionPlan> {
    let options = ConvertOptions { strict, ..ConvertOptions::new(layout) };
    block_on(plan_conversion(source, &options, &Silent))
}

/// The largest weight difference of a conversion, and whether a loss was reported.
fn converted(source: &Path, output: &Path, layout: TargetLayout) -> (f32, bool) {
    let source = open(source);
    let plan = planned(&source, layout, false).unwrap();
    let sinks = FsSinkDir::create(output).unwrap();
    let outcome = block_on(convert(&source, &plan, &sinks, &Silent)).unwrap();
    let result = open(output);
    assert_eq!(result.layout().name(), layout.name());
    let difference = largest_difference(&source, &result);
    assert_eq!(
        outcome.largest_difference().map_or(0.0, |(largest, _)| largest),
        difference,
        "it was measured"
    );
    (difference, plan.modules.iter().any(|module| module.loss.is_some()))
}

fn quantized(place: &Path, options: QuantizeOptions) {
    let original = open(&fixture("tale-llama"));
    block_on(quantize(&original, &options, &FsSinkDir::create(place).unwrap(), &Silent)).unwrap();
}

#[test]
fn integer_codes_move_exactly_through_every_layout_and_back() {
    let place = tempfile::tempdir().unwrap();
    let rtn = |bits, granularity, symmetric| {
        QuantizeOptions::new(Method::Rtn, Scheme::symmetric(bits, granularity).with_symmetry(symmetric))
    };
    let group = Granularity::Group(32);
    let routes = [
        ("sym", rtn(Bits::Four, group, true), &[GPTQ, AWQ, GPTQ_V2, CT][..]),
        ("asym", rtn(Bits::Four, group, false), &[AWQ, GPTQ, CT, GPTQ_V2, AWQ][..]),
        ("three", rtn(Bits::Three, group, false), &[GPTQ, CT, GPTQ_V2][..]),
        ("two", rtn(Bits::Two, Granularity::Group(16), false), &[GPTQ, CT][..]),
        ("eight", rtn(Bits::Eight, Granularity::Channel, true), &[GPTQ, CT][..]),
        ("ternary", QuantizeOptions::ternary(Granularity::Tensor), &[GPTQ, CT][..]),
    ];
    for (name, options, layouts) in routes {
        let mut from = place.path().join(name);
        quantized(&from, options);
        for (step, &layout) in layouts.iter().enumerate() {
            let to = place.path().join(format!("{name}-{step}"));
            assert_eq!(converted(&from, &to, layout), (0.0, false), "{name} to {}", layout.name());
            from = to;
        }
    }
    // Symmetric weights stay symmetric through layouts that store zero points for them.
    let scheme = |path: &str| match open(&place.path().join(path)).module(&Linear::Up.module(0)).unwrap() {
        ModuleStorage::Packed { coding, .. } => coding.to_string(),
        dense => format!("{dense:?}"),
    };
    assert_eq!((scheme("sym-3"), scheme("asym-2")), ("int4-g32-sym".into(), "int4-g32-asym".into()));
}

#[test]
fn written_folders_have_the_same_bytes_each_time() {
    let place = tempfile::tempdir().unwrap();
    let rtn = QuantizeOptions::new(Method::Rtn, Scheme::asymmetric(Bits::Four, Granularity::Group(32)));
    for layout in [GPTQ, AWQ] {
        let paths = ["a", "b"].map(|name| place.path().join(format!("{name}-{}", layout.name())));
        for path in &paths {
            quantized(path, QuantizeOptions { layout: Some(layout), ..rtn.clone() });
        }
        for file in ["model.safetensors", "config.json", "quantization_config.json"] {
            let [a, b] = paths.each_ref().map(|path| std::fs::read(path.join(file)).unwrap());
            assert!(a == b, "{file} of {}", layout.name());
        }
    }
}

#[test]
fn what_a_layout_cannot_hold_is_said_before_anything_is_written() {
    let place = tempfile::tempdir().unwrap();
    let eight = place.path().join("eight");
    quantized(
        &eight,
        QuantizeOptions::new(Method::Rtn, Scheme::symmetric(Bits::Eight, Granularity::Channel)),
    );
    let error = planned(&open(&eight), AWQ, false).unwrap_err();
    assert!(error.to_string().contains("the awq layout can hold none of the modules"), "{error}");
    let error = planned(&open(&eight), AWQ, true).unwrap_err();
    assert!(error.to_string().contains("it holds integer codes of 4 bits, not int8-channel-sym"), "{error}");
    let dense = open(&fixture("tale-llama"));
    let error = planned(&dense, GPTQ, false).unwrap_err();
    assert!(error.to_string().contains("expected a quantized checkpoint"), "{error}");

    // AWQ cannot hold a quantized head. It becomes F16, and the plan says so.
    let head = place.path().join("head");
    let four = QuantizeOptions::new(Method::Rtn, Scheme::symmetric(Bits::Four, Granularity::Group(32)));
    quantized(&head, QuantizeOptions { quantize_head: true, ..four });
    let plan = planned(&open(&head), AWQ, false).unwrap();
    let lost: Vec<_> = plan.modules.iter().filter_map(|module| module.loss.as_deref()).collect();
    assert_eq!(lost, ["floating point, F16: its loaders leave the head in floating point"]);
    let (difference, announced) = converted(&head, &place.path().join("head-awq"), AWQ);
    assert!(announced && difference < 1e-3, "{difference}");
    // Ternary weights use INT8 activations, which GPTQ cannot express.
    let ternary = place.path().join("ternary");
    quantized(&ternary, QuantizeOptions::ternary(Granularity::Tensor));
    let plan = planned(&open(&ternary), GPTQ, false).unwrap();
    assert!(plan.notes()[0].contains("cannot declare INT8 activations"), "{:?}", plan.notes());
}

#[test]
fn layouts_are_refused_for_schemes_that_they_never_hold() {
    let rtn = |bits, layout| QuantizeOptions {
        layout: Some(layout),
        ..QuantizeOptions::new(Method::Rtn, Scheme::symmetric(bits, Granularity::Group(32)))
    };
    let head = QuantizeOptions { quantize_head: true, ..rtn(Bits::Four, AWQ) };
    let embedding = QuantizeOptions { quantize_embedding: Some(Bits::Eight), ..rtn(Bits::Four, GPTQ) };
    let ternary = QuantizeOptions { layout: Some(GPTQ), ..QuantizeOptions::ternary(Granularity::Tensor) };
    for (options, word) in [
        (rtn(Bits::Three, AWQ), "4 bits"),
        (rtn(Bits::Four, TargetLayout::BitNet), "ternary codes"),
        (head, "head"),
        (embedding, "embedding"),
        (ternary, "integer codes"),
    ] {
        let error = options.check().unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    rtn(Bits::Three, GPTQ).check().unwrap();
}
