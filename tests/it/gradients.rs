//! `check-gradients` passes on every architecture with correct gradients, and names the tensor of a wrong one.

use crate::golden;
use crate::support::{fixture, on_disk, synthetic};
use crate::terminal::{arg, copy_of_tale, edit_safetensors, lowbit, short_text};
use lowbit::Result;
use lowbit::internals::backend::cpu::CpuBackend;
use lowbit::internals::backend::{
    BackwardStep, Capabilities, DeviceOps, Element, Matrices, PartGradient, Step, Train, TrainOps,
    WeightDesc, WeightView,
};
use lowbit::internals::dtype::DType;
use lowbit::internals::model::Checkpoint;
use lowbit::internals::task::block_on;
use lowbit::internals::train::gradients::{GradientReport, SLOPE_ERROR, check};
use lowbit::internals::train::{BatchCapacity, Origin, Precision, Row, TrainedModel};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::sync::Arc;

/// The report for some tokens, without rounding.
fn report<B: Train>(backend: B, checkpoint: &Checkpoint, tokens: &[u32]) -> Result<GradientReport> {
    let count = tokens.len() - 1;
    let row = Row { tokens: &tokens[..count], targets: &tokens[1..] };
    let (origin, capacity) =
        (Origin::Checkpoint(checkpoint), BatchCapacity { tokens: count, context: count });
    let precision = Precision { float: Some(DType::F32), ..Precision::default() };
    let mut model = block_on(TrainedModel::new(backend, origin, precision, capacity))?;
    block_on(check(&mut model, &[row], 0))
}

#[test]
fn gradients_of_every_architecture_pass() {
    let mut families = BTreeSet::new();
    let mut worst = 0.0f64;
    for (name, golden, config) in golden::cases() {
        let dir = synthetic::checkpoint(&name, &config, &golden.tensors, golden.a);
        let checkpoint = block_on(Checkpoint::open(Arc::new(dir))).unwrap();
        if checkpoint.is_quantized() {
            continue;
        }
        let found = report(CpuBackend::new(), &checkpoint, &golden.tokens).unwrap();
        assert!(found.passed, "{name}: {:?}", found.failures);
        let slopes = found.slopes.unwrap();
        assert_eq!(slopes.len(), 3, "{name}");
        let error = slopes.iter().map(|slope| slope.error()).fold(0.0, f64::max);
        println!("{name}: slopes within {error:.1e}, a step at rate {:?}", found.step);
        worst = worst.max(error);
        families.insert(format!("{:?}", checkpoint.config().architecture));
    }
    println!("all: slopes within {worst:.1e}");
    assert!(families.len() >= 4, "{families:?}");
}

/// A fault of a device.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// The gradient of the v projection is zero.
    Lost,
    /// The gradients of q, k and v are doubled.
    Twice,
}

/// A device with a fault in the backward pass of the last block.
struct Wrong {
    inner: CpuBackend,
    fault: Fault,
    done: bool,
}

impl DeviceOps for Wrong {
    type Buffer = <CpuBackend as DeviceOps>::Buffer;
    type Weight = <CpuBackend as DeviceOps>::Weight;
    type WeightBuilder = <CpuBackend as DeviceOps>::WeightBuilder;
    type Reading = <CpuBackend as DeviceOps>::Reading;

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn begin_weight(&mut self, parts: &[WeightDesc]) -> Result<Self::WeightBuilder> {
        self.inner.begin_weight(parts)
    }

    fn put_rows(
        &mut self,
        builder: &mut Self::WeightBuilder,
        part: usize,
        rows: Range<usize>,
        data: WeightView<'_>,
    ) -> Result<()> {
        self.inner.put_rows(builder, part, rows, data)
    }

    fn put_bias(&mut self, builder: &mut Self::WeightBuilder, part: usize, bias: &[f32]) -> Result<()> {
        self.inner.put_bias(builder, part, bias)
    }

    async fn finish_weight(&mut self, builder: Self::WeightBuilder) -> Result<Self::Weight> {
        self.inner.finish_weight(builder).await
    }

    fn buffer(&mut self, element: Element, len: usize) -> Result<Self::Buffer> {
        self.inner.buffer(element, len)
    }

    fn write(&mut self, out: &mut Self::Buffer, words: &[u32]) -> Result<()> {
        self.inner.write(out, words)
    }

    fn run(&mut self, step: Step<'_, Self::Buffer, Self::Weight>) -> Result<()> {
        // The forward pass begins.
        if matches!(step, Step::Embed { .. }) {
            self.done = false;
        }
        self.inner.run(step)
    }

    fn flush(&mut self) -> Result<()> {
        self.inner.flush()
    }

    fn begin_reading(&mut self, ranges: &[(&Self::Buffer, Range<usize>)]) -> Result<Self::Reading> {
        self.inner.begin_reading(ranges)
    }

    async fn finish_read(&mut self, reading: Self::Reading) -> Result<Vec<u32>> {
        self.inner.finish_read(reading).await
    }

    async fn read_words(&mut self, source: &Self::Buffer, offset: usize, out: &mut [u32]) -> Result<()> {
        self.inner.read_words(source, offset, out).await
    }
}

impl TrainOps for Wrong {
    fn run_backward(&mut self, step: BackwardStep<'_, Self::Buffer, Self::Weight>) -> Result<()> {
        let BackwardStep::Linear { x, dy, count, weight, dx, mut parts } = step else {
            return self.inner.run_backward(step);
        };
        let is_wrong = parts.len() == 3 && !self.done;
        self.done |= is_wrong;
        if is_wrong && self.fault == Fault::Twice {
            let again = parts.iter_mut().map(|part| PartGradient {
                rows: part.rows,
                weight: &mut *part.weight,
                bias: part.bias.as_deref_mut(),
            });
            let parts = again.collect();
            self.inner.run_backward(BackwardStep::Linear { x, dy, count, weight, dx: &mut *dx, parts })?;
        }
        let mut nowhere;
        if is_wrong && self.fault == Fault::Lost {
            nowhere = self.inner.buffer(Element::F32, parts[2].rows * weight.cols())?;
            parts[2].weight = &mut nowhere;
        }
        self.inner.run_backward(BackwardStep::Linear { x, dy, count, weight, dx, parts })
    }
}

#[test]
fn a_gradient_that_is_lost_or_too_long_is_seen() {
    let (name, golden, config) =
        golden::cases().into_iter().find(|(name, ..)| name.starts_with("llama/")).unwrap();
    let dir = synthetic::checkpoint(&name, &config, &golden.tensors, golden.a);
    let checkpoint = block_on(Checkpoint::open(Arc::new(dir))).unwrap();
    let last = checkpoint.config().num_hidden_layers - 1;
    let with = |fault| {
        let device = Wrong { inner: CpuBackend::new(), fault, done: false };
        let found = report(device, &checkpoint, &golden.tokens).unwrap();
        assert!(!found.passed);
        found
    };
    let lost = with(Fault::Lost);
    let tensor = format!("model.layers.{last}.self_attn.v_proj.weight");
    assert_eq!(lost.dead, [tensor.as_str()]);
    assert_eq!(lost.failures, [format!("the gradient of `{tensor}` is 0 everywhere")]);
    let twice = with(Fault::Twice);
    assert!(twice.dead.is_empty());
    assert!(twice.slopes.unwrap().iter().all(|slope| slope.error() > SLOPE_ERROR));
    assert!(twice.failures[0].starts_with("expected a slope of "), "{:?}", twice.failures);
}

#[test]
fn the_command_passes_or_rejects() {
    let folder = tempfile::tempdir().unwrap();
    let text = short_text(folder.path());
    let size = ["--context", "64", "--batch-tokens", "256"];
    let tale = arg(fixture("tale-llama"));
    let figures = arg(folder.path().join("figures.jsonl"));
    for (bits, rounded) in [("none", false), ("4", true), ("ternary", true)] {
        let args =
            ["check-gradients", &tale, "--data", &text, "--bits", bits, "--json", "--metrics", &figures];
        let group = if bits == "4" { &["--group-size", "32"][..] } else { &[] };
        let said = lowbit([&args[..], &size, group].concat()).done().json();
        assert_eq!((&said["passed"], &said["rounded"]), (&true.into(), &rounded.into()), "{said:#}");
        assert_eq!(said["slopes"].is_null(), rounded, "{said:#}");
    }
    // A model with random weights, from a configuration.
    let config = folder.path().join("config.json");
    fs::copy(fixture("tale-llama/config.json"), &config).unwrap();
    let said = lowbit(
        [&["check-gradients", &arg(&config), "--tokenizer", &tale, "--data", &text][..], &size].concat(),
    );
    assert!(said.done().stdout.starts_with("passed: "));

    // The last MLP's output is zero, so its inputs get no gradient.
    let broken = folder.path().join("broken");
    copy_of_tale(&broken);
    let layers = block_on(Checkpoint::open(on_disk(&tale))).unwrap().config().num_hidden_layers;
    let mlp = format!("model.layers.{}.mlp", layers - 1);
    edit_safetensors(&broken.join("model.safetensors"), |header, data| {
        let place = &header[format!("{mlp}.down_proj.weight")]["data_offsets"];
        let at = |index: usize| place[index].as_u64().unwrap() as usize;
        data[at(0)..at(1)].fill(0);
    });
    let args = ["check-gradients", &arg(&broken), "--data", &text, "--metrics", &figures];
    let ran = lowbit([&args[..], &size].concat());
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stdout.starts_with("failed: "), "{}", ran.stdout);
    for name in ["gate_proj", "up_proj"] {
        let sentence = format!("the gradient of `{mlp}.{name}.weight` is 0 everywhere\n");
        assert!(ran.stdout.contains(&sentence), "{}", ran.stdout);
    }
    let lines = fs::read_to_string(&figures).unwrap();
    let values: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(values.iter().all(|line| line["name"] == "gradient_flow_test_passed"));
    assert_eq!(
        values.iter().map(|line| line["value"].as_f64().unwrap()).collect::<Vec<_>>(),
        [1.0, 1.0, 1.0, 0.0]
    );
}
