//! The decisions of `auto`: attempts, judgement and end. Pure functions of reports.
//!
//! The attempts for a checkpoint, in order:
//!
//! 1. one precision with growing numbers of calibration samples;
//! 2. the most sensitive layers in the next higher precision;
//! 3. INT8;
//! 4. training, if the host supports it.
//!
//! Then the next checkpoint follows. Only quality and generation count, because further attempts do not improve size or
//! speed.

use crate::artifact::records::{ModuleRecord, TRAINED};
use crate::options::named;
use crate::plan::PlanOptions;
use crate::quant::{Bits, Granularity, Scheme};
use crate::sort;
use crate::validate::report::ValidationReport;
use crate::validate::verdict::{Status, criterion};

/// An attempt with a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attempt {
    /// The target.
    pub target: Target,
    /// Calibration samples; 0 for training.
    pub samples: usize,
}

/// The target of an attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Most linear layers have 4 or 8 bits.
    Bits(Bits),
    /// The most sensitive layers of the previous attempt are promoted: to INT8 next to INT4, or to floating point next
    /// to INT8.
    Mixed(Bits),
    /// Bits are allocated to modules within so many mean bits per weight.
    BitsPerWeight(f64),
    /// Quantization-aware training.
    Trained(Scheme),
}

impl Attempt {
    /// The folder's name: `int4-512`, `int4-2048-mixed`, `2.5bpw-512`, `qat-int2-g32-sym`.
    pub fn name(&self) -> String {
        let samples = self.samples;
        match self.target {
            Target::Bits(bits) => format!("int{}-{samples}", bits.get()),
            Target::Mixed(bits) => format!("int{}-{samples}-mixed", bits.get()),
            Target::BitsPerWeight(bits) => format!("{bits}bpw-{samples}"),
            Target::Trained(scheme) => format!("qat-{scheme}"),
        }
    }
}

/// The first target of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    /// 4 or 8 bits.
    Bits(Bits),
    /// At most so many mean bits per weight, in all attempts.
    BitsPerWeight(f64),
}

/// The attempts for a checkpoint, in order: each number of `samples`, limited by the `available` ones; without a target
/// in bits per weight, mixed precision and INT8; training, if there is a scheme for it. Repetitions are omitted.
pub fn planned_attempts(
    begin: Start,
    samples: &[usize],
    available: usize,
    trained: Option<Scheme>,
) -> Vec<Attempt> {
    let target = match begin {
        Start::Bits(bits) => Target::Bits(bits),
        Start::BitsPerWeight(bits) => Target::BitsPerWeight(bits),
    };
    let mut attempts: Vec<Attempt> = Vec::new();
    for &samples in samples {
        let samples = samples.min(available);
        if samples > attempts.last().map_or(0, |last| last.samples) {
            attempts.push(Attempt { target, samples });
        }
    }
    let Some(&Attempt { samples, .. }) = attempts.last() else { return attempts };
    if let Start::Bits(bits) = begin {
        attempts.push(Attempt { target: Target::Mixed(bits), samples });
        if bits != Bits::Eight {
            attempts.push(Attempt { target: Target::Bits(Bits::Eight), samples });
        }
    }
    attempts.extend(trained.map(|scheme| Attempt { target: Target::Trained(scheme), samples: 0 }));
    attempts
}

/// Group sizes for training within a target.
const GROUPS: [usize; 3] = [32, 64, 128];

/// Bits of a half-precision scale.
const SCALE_BITS: f64 = 16.0;

/// The scheme for training: the uniform scheme with most bits within the target.
pub fn trained_scheme(begin: Start) -> Option<Scheme> {
    let PlanOptions { int4, int8, .. } = PlanOptions::default();
    let most = match begin {
        Start::Bits(Bits::Eight) => return Some(Scheme::symmetric(Bits::Eight, int8)),
        Start::Bits(bits) => return Some(Scheme::symmetric(bits, int4)),
        Start::BitsPerWeight(most) => most,
    };
    let integers = [Bits::Four, Bits::Three, Bits::Two].into_iter().flat_map(|bits| {
        GROUPS.map(|group| (f64::from(bits.get()) + SCALE_BITS / group as f64, bits, group))
    });
    let mut fitting = integers.filter(|&(takes, ..)| takes <= most);
    fitting.next().map(|(_, bits, group)| Scheme::symmetric(bits, Granularity::Group(group)))
}

named! {
    /// Judgement of an attempt
    pub enum Judgement {
        /// Quality and generation are within the limits, or undetermined
        Good = "good",
        /// One of them is beyond its limit
        Bad = "bad",
        /// The original's perplexity is not finite, so that nothing can be judged
        Hopeless = "hopeless",
    }
}

/// Judges by quality and generation alone.
pub fn judge(report: &ValidationReport) -> Judgement {
    const COUNT: [&str; 3] = [
        criterion::PERPLEXITY_INCREASE,
        criterion::BENCHMARK_DROP_POINTS,
        criterion::NEW_GENERATION_FAILURES,
    ];
    if !report.perplexity.original.is_finite() {
        return Judgement::Hopeless;
    }
    let failed =
        report.criteria.iter().any(|row| row.status == Status::Failed && COUNT.contains(&row.name.as_str()));
    if failed { Judgement::Bad } else { Judgement::Good }
}

/// A judged attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Index of the checkpoint.
    pub checkpoint: usize,
    /// Index of the attempt.
    pub attempt: usize,
    /// Its judgement.
    pub judgement: Judgement,
}

/// The next action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Run this attempt.
    Try {
        /// Index of the checkpoint.
        checkpoint: usize,
        /// Index of the attempt.
        attempt: usize,
    },
    /// Accept the last attempt.
    Accept,
    /// No attempt is left.
    Reject,
}

/// The next action after the `last` attempt. Checkpoint `i` has `attempts[i]` attempts.
pub fn next(attempts: &[usize], last: Option<Judged>) -> Next {
    let (mut checkpoint, mut attempt) = match last {
        None => (0, 0),
        Some(Judged { judgement: Judgement::Good, .. }) => return Next::Accept,
        Some(Judged { checkpoint, attempt, judgement: Judgement::Bad }) => (checkpoint, attempt + 1),
        Some(Judged { checkpoint, judgement: Judgement::Hopeless, .. }) => (checkpoint + 1, 0),
    };
    while checkpoint < attempts.len() {
        if attempt < attempts[checkpoint] {
            return Next::Try { checkpoint, attempt };
        }
        (checkpoint, attempt) = (checkpoint + 1, 0);
    }
    Next::Reject
}

/// The recommendation when no attempt was accepted. `last` is the last report.
pub fn recommend(attempts: usize, last: &ValidationReport) -> String {
    let tried =
        if attempts == 1 { "the only attempt".to_owned() } else { format!("all {attempts} attempts") };
    if judge(last) == Judgement::Hopeless {
        return format!("{tried} failed: {}", last.recommendation);
    }
    let next = if last.quantized.method == TRAINED {
        "train for longer and with more text (lowbit qat)"
    } else {
        "train with quantization in the loop (QAT)"
    };
    format!(
        "{tried} lost too much: {next}, give another checkpoint, or allow more loss; the last report says: {}",
        last.recommendation
    )
}

/// Share of the weights that mixed precision promotes. Not tuned.
const PROMOTED_SHARE: f64 = 0.25;

/// The modules with the largest output errors on the calibration samples, worst first, with about a quarter of all
/// quantized weights, but at least one. `weights` returns a module's number of weights.
pub fn worst_modules(modules: &[ModuleRecord], weights: impl Fn(&str) -> u64) -> Vec<String> {
    let mut measured: Vec<(&str, f64)> = modules
        .iter()
        .filter_map(|module| Some((module.name.as_str(), module.calibration.as_ref()?.output_error?)))
        .collect();
    let all: u64 = measured.iter().map(|(name, _)| weights(name)).sum();
    sort::sort_by(&mut measured, |a, b| b.1.total_cmp(&a.1));
    let room = (all as f64 * PROMOTED_SHARE) as u64;
    let mut taken = 0;
    let mut worst: Vec<String> = Vec::new();
    for (name, _) in measured {
        if !worst.is_empty() && taken + weights(name) > room {
            continue;
        }
        taken += weights(name);
        worst.push(name.to_owned());
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::CalibrationRecord;
    use serde_json::json;

    /// A report with these perplexities and statuses of its criteria.
    fn report(original: f64, criteria: &[(&str, Status)]) -> ValidationReport {
        let criteria: Vec<_> = criteria
            .iter()
            .map(|(name, status)| json!({"name": name, "limit": 0.0, "value": 1.0, "status": status}))
            .collect();
        serde_json::from_value(json!({
            "schema": "lowbit.validation/1",
            "original": {"path": "a", "parameters": 1, "bytes": 1},
            "quantized": {"path": "b", "method": "gptq", "scheme": "int4-g32-sym", "bits_per_weight": 4.5, "bytes": 1,
                "activations": "f32"},
            "execution": "side-by-side",
            "dataset": {"name": "t", "tokens": 1, "sha256": ""},
            "perplexity": {"original": original.is_finite().then_some(original), "quantized": 9.0, "increase": 0.1},
            "divergence": {"kl_mean": 0.0, "kl_p99": 0.0, "top1_agreement": 1.0},
            "benchmark": null,
            "layers": [],
            "memory": {"original_bytes": 1, "quantized_bytes": 1, "ratio": 1.0},
            "speed": null,
            "generation": {"prompts": 0, "failures": []},
            "criteria": criteria,
            "accepted": false,
            "recommendation": "use INT8"
        }))
        .unwrap()
    }

    #[test]
    fn only_quality_and_generation_count() {
        use Status::{Failed, Inconclusive, Passed};
        for (criteria, expected) in [
            (&[("perplexity_increase", Passed), ("new_generation_failures", Passed)][..], Judgement::Good),
            (&[("perplexity_increase", Failed)], Judgement::Bad),
            (&[("benchmark_drop_points", Failed)], Judgement::Bad),
            (&[("benchmark_drop_points", Passed)], Judgement::Good),
            (&[("perplexity_increase", Passed), ("new_generation_failures", Failed)], Judgement::Bad),
            (&[("perplexity_increase", Passed), ("new_generation_failures", Inconclusive)], Judgement::Good),
            (&[("perplexity_increase", Passed), ("memory_ratio", Failed)], Judgement::Good),
            (&[("perplexity_increase", Passed), ("speed_ratio", Failed)], Judgement::Good),
        ] {
            assert_eq!(judge(&report(8.0, criteria)), expected, "{criteria:?}");
        }
        let broken = report(f64::NAN, &[("perplexity_increase", Failed)]);
        assert_eq!(judge(&broken), Judgement::Hopeless);
    }

    #[test]
    fn rungs_go_up_and_never_repeat() {
        let named = |begin, samples: &[usize], available, trained| {
            planned_attempts(begin, samples, available, trained).iter().map(Attempt::name).collect::<Vec<_>>()
        };
        let names = |bits, samples: &[usize], available| named(Start::Bits(bits), samples, available, None);
        let four = Bits::Four;
        assert_eq!(
            names(four, &[512, 2048], 9999),
            ["int4-512", "int4-2048", "int4-2048-mixed", "int8-2048"]
        );
        assert_eq!(
            names(four, &[512, 2048], 700),
            ["int4-512", "int4-700", "int4-700-mixed", "int8-700"],
            "the text has no more"
        );
        assert_eq!(names(four, &[512, 2048], 130), ["int4-130", "int4-130-mixed", "int8-130"]);
        assert_eq!(names(Bits::Eight, &[512, 2048], 9999), ["int8-512", "int8-2048", "int8-2048-mixed"]);
        assert_eq!(names(four, &[64], 9999), ["int4-64", "int4-64-mixed", "int8-64"]);
        assert!(names(four, &[512], 0).is_empty());
        let trained = |begin| named(begin, &[512, 2048], 700, trained_scheme(begin));
        assert_eq!(
            trained(Start::Bits(four)),
            ["int4-512", "int4-700", "int4-700-mixed", "int8-700", "qat-int4-g32-sym"]
        );
        // A target in bits per weight excludes more bits.
        for (target, scheme) in
            [(2.5, "int2-g32-sym"), (2.2, "int2-g128-sym"), (3.6, "int3-g32-sym"), (9.0, "int4-g32-sym")]
        {
            let expected = [format!("{target}bpw-512"), format!("{target}bpw-700"), format!("qat-{scheme}")];
            assert_eq!(trained(Start::BitsPerWeight(target)), expected);
        }
        assert_eq!(trained(Start::BitsPerWeight(2.0)), ["2bpw-512", "2bpw-700"]);
    }

    #[test]
    fn the_ladder_is_climbed_rung_by_rung_and_checkpoint_by_checkpoint() {
        use Judgement::{Bad, Good, Hopeless};
        let tried = |checkpoint, attempt, judgement| Some(Judged { checkpoint, attempt, judgement });
        let go_on = |checkpoint, attempt| Next::Try { checkpoint, attempt };
        for (attempts, last, expected) in [
            (&[4, 3][..], None, go_on(0, 0)),
            (&[4, 3], tried(0, 0, Bad), go_on(0, 1)),
            (&[4, 3], tried(0, 3, Bad), go_on(1, 0)),
            (&[4, 3], tried(1, 2, Bad), Next::Reject),
            (&[4, 3], tried(0, 1, Good), Next::Accept),
            (&[4, 3], tried(1, 2, Good), Next::Accept),
            (&[4, 3], tried(0, 0, Hopeless), go_on(1, 0)),
            (&[4, 3], tried(1, 0, Hopeless), Next::Reject),
            (&[0, 0, 2], None, go_on(2, 0)),
            (&[], None, Next::Reject),
        ] {
            assert_eq!(next(attempts, last), expected, "{attempts:?} {last:?}");
        }
        // If all are bad, every attempt is tried once, in order.
        let mut seen = Vec::new();
        let mut last = None;
        while let Next::Try { checkpoint, attempt } = next(&[2, 0, 3], last) {
            seen.push((checkpoint, attempt));
            last = tried(checkpoint, attempt, Bad);
        }
        assert_eq!(seen, [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]);
    }

    #[test]
    fn a_rejection_recommends_training() {
        let text = recommend(4, &report(8.0, &[("perplexity_increase", Status::Failed)]));
        assert!(
            text.starts_with("all 4 attempts") && text.contains("QAT") && text.contains("use INT8"),
            "{text}"
        );
        let text = recommend(1, &report(f64::INFINITY, &[("perplexity_increase", Status::Failed)]));
        assert!(text.starts_with("the only attempt") && !text.contains("QAT"), "{text}");
    }

    #[test]
    fn the_worst_modules_hold_a_quarter_of_the_weights() {
        let module = |name: &str, output_error: Option<f64>| ModuleRecord {
            name: name.to_owned(),
            scheme: "int4-g32-sym".to_owned(),
            method: None,
            reason: None,
            calibration: output_error.map(|error| CalibrationRecord {
                method: "gptq".to_owned(),
                output_error: Some(error),
                rtn_output_error: None,
                damping: None,
                ratio: None,
                clipped: None,
                reason: None,
            }),
        };
        let weights = |name: &str| if name == "large" { 50 } else { 10 };
        for (modules, expected) in [
            // 110 weights in all: 27 may be promoted, and the large one does not fit.
            (
                vec![
                    module("a", Some(0.1)),
                    module("large", Some(0.3)),
                    module("b", Some(0.4)),
                    module("c", Some(0.2)),
                    module("d", Some(0.05)),
                    module("e", Some(0.01)),
                    module("f", Some(0.02)),
                    module("kept", None),
                ],
                vec!["b", "c"],
            ),
            // At least one.
            (vec![module("large", Some(0.3)), module("a", Some(0.1))], vec!["large"]),
            (vec![module("kept", None)], vec![]),
        ] {
            assert_eq!(worst_modules(&modules, weights), expected);
        }
    }
}
