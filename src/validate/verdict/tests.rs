//! The verdict on injected measurements.

use super::super::failures::{FailureKind, PromptFailure};
use super::super::measurements::{
    BenchmarkMeasurement, PerplexityMeasurement, Preparation, SpeedMeasurement, SpeedRound,
};
use super::super::reading::{ReadingProblem, ReadingProblemKind};
use super::*;
use crate::options::Options;
use crate::quant::{Activations, Bits, Granularity, Scheme};
use Status::{Failed, Inconclusive, Passed};

fn int(bits: Bits, granularity: Granularity) -> Coding {
    Scheme::symmetric(bits, granularity).into()
}

const INT4: Coding = Scheme::symmetric(Bits::Four, Granularity::Group(32)).coding();
const TERNARY: Coding = Scheme::ternary(Granularity::Tensor).coding();

fn rounds(ratios: &[f64]) -> Vec<SpeedRound> {
    let round = |&ratio: &f64| SpeedRound {
        original_tokens_per_second: 10.0,
        quantized_tokens_per_second: 10.0 * ratio,
    };
    ratios.iter().map(round).collect()
}

/// Measurements that pass everything.
pub(in crate::validate) fn passing() -> Measurements {
    Measurements {
        scheme: INT4,
        preparation: Preparation::Rounded,
        activations: Activations::F32,
        perplexity: PerplexityMeasurement { original: 8.0, quantized: 8.125 },
        benchmark: None,
        prompts: 10,
        failures: vec![],
        memory: vec![LayerMemory { scheme: INT4, f16_bytes: 3500, packed_bytes: 1000 }],
        speed: Some(SpeedMeasurement {
            device: "cpu".into(),
            rounds: rounds(&[2.0; 5]),
            original_bytes: 1 << 30,
            last_level_cache_bytes: Some(1 << 25),
        }),
        worst_layers: vec![],
        reading: vec![],
    }
}

fn failure(original_also: bool) -> PromptFailure {
    PromptFailure {
        prompt: "p".into(),
        kind: FailureKind::RepetitionLoop,
        detail: "d".into(),
        original_also,
        text: "t".into(),
    }
}

/// Judges `passing()` after a change.
fn judged(change: impl FnOnce(&mut Measurements)) -> Verdict {
    let mut measurements = passing();
    change(&mut measurements);
    judge(&measurements, &Limits::default())
}

fn statuses(verdict: &Verdict) -> [Status; 5] {
    std::array::from_fn(|i| verdict.criteria[i].status)
}

#[test]
fn everything_within_its_limit_is_accepted() {
    let verdict = judged(|_| ());
    assert_eq!(statuses(&verdict), [Passed; 5]);
    assert!(verdict.accepted);
    assert_eq!(verdict.recommendation, "accepted: nothing has to be changed");
    let names: Vec<&str> = verdict.criteria.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(
        names,
        ["perplexity_increase", "new_generation_failures", "memory_ratio", "speed_ratio", "reading_problems"]
    );
}

#[test]
fn a_problem_in_reading_rejects() {
    let verdict = judged(|m| {
        m.reading = vec![ReadingProblem {
            kind: ReadingProblemKind::UnreadTensor,
            detail: "small: `model.layers.0.mlp.router.weight`".into(),
        }];
    });
    assert_eq!(statuses(&verdict), [Passed, Passed, Passed, Passed, Failed]);
    assert!(!verdict.accepted && verdict.recommendation.contains("router"), "{}", verdict.recommendation);
}

#[test]
fn quality() {
    let inf = f64::INFINITY;
    let benchmark = |original_right, quantized_right| {
        Some(BenchmarkMeasurement { items: 100, original_right, quantized_right })
    };
    // original, quantized, benchmark -> row, value, status
    let cases = [
        (10.0, 9.5, None, "perplexity_increase", -0.05, Passed),
        (100.0, 101.9, None, "perplexity_increase", 0.019, Passed),
        // Exactly 2% is not below 2%.
        (50.0, 51.0, None, "perplexity_increase", 0.02, Failed),
        (10.0, 10.5, None, "perplexity_increase", 0.05, Failed),
        (10.0, 10.1, benchmark(80, 20), "perplexity_increase", 0.01, Passed),
        (10.0, 10.5, benchmark(80, 79), "benchmark_drop_points", 1.0, Passed),
        (10.0, 10.5, benchmark(50, 55), "benchmark_drop_points", -5.0, Passed),
        // Exactly two points are not below two points.
        (10.0, 10.5, benchmark(30, 28), "perplexity_increase", 0.05, Failed),
        (10.0, 10.5, benchmark(80, 20), "perplexity_increase", 0.05, Failed),
        (
            10.0,
            10.5,
            Some(BenchmarkMeasurement { items: 0, original_right: 0, quantized_right: 0 }),
            "perplexity_increase",
            0.05,
            Failed,
        ),
        (10.0, f64::NAN, None, "perplexity_increase", f64::NAN, Failed),
        (10.0, inf, None, "perplexity_increase", inf, Failed),
        (inf, 10.0, None, "perplexity_increase", -1.0, Failed),
        (inf, inf, None, "perplexity_increase", f64::NAN, Failed),
        (0.0, 0.0, None, "perplexity_increase", f64::NAN, Failed),
        (10.0, 0.0, None, "perplexity_increase", -1.0, Failed),
        (10.0, -3.0, None, "perplexity_increase", -1.3, Failed),
        // A model without a finite perplexity is broken, whatever its benchmark result.
        (10.0, f64::NAN, benchmark(80, 80), "perplexity_increase", f64::NAN, Failed),
    ];
    for (original, quantized, benchmark, name, value, status) in cases {
        let verdict = judged(|m| {
            m.perplexity = PerplexityMeasurement { original, quantized };
            m.benchmark = benchmark;
        });
        let row = &verdict.criteria[0];
        let case = format!("{original} -> {quantized}, {benchmark:?}");
        assert_eq!((row.name.as_str(), row.status), (name, status), "{case}");
        let same = row.value == value || (row.value.is_nan() && value.is_nan());
        assert!(same || (row.value - value).abs() < 1e-12, "{case}: {}", row.value);
        assert_eq!(verdict.accepted, status == Passed, "{case}");
    }
}

#[test]
fn generation() {
    let cases = [
        (10, vec![], 0.0, Passed),
        (10, vec![failure(true), failure(true)], 0.0, Passed),
        (10, vec![failure(true), failure(false)], 1.0, Failed),
    ];
    for (prompts, failures, value, status) in cases {
        let verdict = judged(|m| (m.prompts, m.failures) = (prompts, failures));
        let row = &verdict.criteria[1];
        assert_eq!((row.limit, row.value, row.status), (0.0, value, status));
        assert_eq!(verdict.accepted, status == Passed);
    }
    let verdict = judged(|m| m.prompts = 0);
    assert_eq!(verdict.criteria[1].status, Inconclusive);
    assert!(verdict.accepted && verdict.criteria[1].value.is_nan());
}

#[test]
fn memory_by_scheme() {
    let group = Granularity::Group(32);
    let cases = [
        (INT4, 3400, 1000, 3.4, Passed),
        (INT4, 3399, 1000, 3.4, Failed),
        (int(Bits::Eight, group), 1850, 1000, 1.85, Passed),
        (int(Bits::Eight, group), 1849, 1000, 1.85, Failed),
        (int(Bits::Three, group), 4400, 1000, 4.4, Passed),
        (int(Bits::Three, group), 4399, 1000, 4.4, Failed),
        (int(Bits::Two, group), 6200, 1000, 6.2, Passed),
        (int(Bits::Two, group), 6199, 1000, 6.2, Failed),
        (TERNARY, 7000, 1000, 7.0, Passed),
        (TERNARY, 6999, 1000, 7.0, Failed),
        (INT4, 3500, 0, 3.4, Failed),
    ];
    for (scheme, f16_bytes, packed_bytes, limit, status) in cases {
        let verdict = judged(|m| m.memory = vec![LayerMemory { scheme, f16_bytes, packed_bytes }]);
        let row = &verdict.criteria[2];
        assert_eq!((row.limit, row.status), (limit, status), "{scheme} {f16_bytes}/{packed_bytes}");
        assert_eq!(verdict.accepted, status == Passed);
    }
    assert_eq!(judged(|m| m.memory.clear()).criteria[2].status, Failed, "nothing was quantized");
}

#[test]
fn memory_limits_mix_by_bytes() {
    let int8 = int(Bits::Eight, Granularity::Channel);
    let layers = |int4_packed| {
        vec![
            LayerMemory { scheme: INT4, f16_bytes: 3400, packed_bytes: int4_packed },
            LayerMemory { scheme: int8, f16_bytes: 1850, packed_bytes: 1000 },
        ]
    };
    let verdict = judged(|m| m.memory = layers(999));
    assert!((verdict.criteria[2].limit - 5250.0 / 2000.0).abs() < 1e-12);
    assert_eq!(verdict.criteria[2].status, Passed);
    assert_eq!(judged(|m| m.memory = layers(1001)).criteria[2].status, Failed);
}

#[test]
fn speed() {
    let cases: [(&str, &[f64], Status); 9] = [
        ("clearly faster", &[2.0, 2.1, 1.9, 2.0, 2.0], Passed),
        ("clearly slower", &[1.0, 1.1, 0.9, 1.0, 1.0], Failed),
        ("exactly at the limit", &[1.5; 5], Inconclusive),
        ("the spread covers the limit from above", &[1.6, 1.4, 1.9, 1.6, 1.4], Inconclusive),
        ("the spread covers the limit from below", &[1.4, 1.6, 1.2, 1.4, 1.6], Inconclusive),
        ("one round was disturbed", &[2.0, 2.0, 0.1, 2.0, 2.0], Passed),
        ("too few rounds", &[2.0; 4], Inconclusive),
        ("no rounds", &[], Inconclusive),
        ("not a number", &[2.0, 2.0, f64::NAN, 2.0, 2.0], Failed),
    ];
    for (name, ratios, status) in cases {
        let verdict = judged(|m| m.speed.as_mut().unwrap().rounds = rounds(ratios));
        assert_eq!(verdict.criteria[3].status, status, "{name}");
        assert_eq!(verdict.accepted, status != Failed, "{name}");
    }
    let verdict = judged(|m| m.speed = None);
    assert_eq!((verdict.criteria[3].status, verdict.accepted), (Inconclusive, true));
}

#[test]
fn speed_in_the_cache_is_inconclusive_whichever_way_it_goes() {
    for (ratio, cache, status) in [
        (2.0, Some(1 << 30), Inconclusive),
        (0.5, Some(1 << 30), Inconclusive),
        (0.5, Some((1 << 30) - 1), Failed),
        (2.0, None, Passed),
    ] {
        let verdict = judged(|m| {
            let speed = m.speed.as_mut().unwrap();
            speed.rounds = rounds(&[ratio; 5]);
            speed.last_level_cache_bytes = cache;
        });
        assert_eq!(verdict.criteria[3].status, status, "{ratio} {cache:?}");
        assert_eq!(verdict.recommendation.contains("last-level cache"), status == Inconclusive);
    }
}

#[test]
fn a_model_that_gives_no_tokens_fails_on_speed() {
    let verdict = judged(|m| {
        for round in &mut m.speed.as_mut().unwrap().rounds {
            round.original_tokens_per_second = 0.0;
        }
    });
    assert_eq!(verdict.criteria[3].status, Failed);
}

#[test]
fn spread_is_measured_from_the_ratio_of_the_medians() {
    let speed = SpeedMeasurement { rounds: rounds(&[1.0, 2.0, 3.0, 4.0, 6.0]), ..passing().speed.unwrap() };
    assert_eq!((speed.original_tokens_per_second(), speed.quantized_tokens_per_second()), (10.0, 30.0));
    assert_eq!((speed.ratio(), speed.spread()), (3.0, 1.0));
}

#[test]
fn limits_can_be_set() {
    let limits = Limits {
        max_perplexity_increase: 0.01,
        max_benchmark_drop_points: 5.0,
        max_new_failures: 1,
        min_memory_ratio: Some(3.6),
        min_speed_ratio: 2.5,
    };
    let mut measurements = passing();
    measurements.failures = vec![failure(false)];
    let verdict = judge(&measurements, &limits);
    assert_eq!(statuses(&verdict), [Failed, Passed, Failed, Failed, Passed]);
    assert!(limits.check().is_ok());
    for broken in [
        Limits { max_perplexity_increase: f64::NAN, ..Limits::default() },
        Limits { max_benchmark_drop_points: f64::INFINITY, ..Limits::default() },
        Limits { min_memory_ratio: Some(f64::NAN), ..Limits::default() },
        Limits { min_speed_ratio: f64::NEG_INFINITY, ..Limits::default() },
    ] {
        assert!(broken.check().unwrap_err().message().contains("expected a number"));
    }
}

#[test]
fn recommendations() {
    use Preparation::{Calibrated, Rounded, Trained};
    let int8 = int(Bits::Eight, Granularity::Channel);
    let grouped8 = int(Bits::Eight, Granularity::Group(128));
    let coarse4 = int(Bits::Four, Granularity::Group(128));
    let two = int(Bits::Two, Granularity::Group(32));
    let three = int(Bits::Three, Granularity::Group(32));
    // scheme, preparation, perplexity (the original's is 10) -> words that must occur, words that must not
    type Case<'a> = (Coding, Preparation, f64, &'a [&'a str], &'a [&'a str]);
    let cases: [Case; 13] = [
        (
            INT4,
            Rounded,
            10.5,
            &["calibrate (GPTQ or AWQ)", "mixed precision", "INT8"],
            &["groups of 32", "QAT"],
        ),
        (coarse4, Rounded, 10.5, &["calibrate", "groups of 32"], &[]),
        (INT4, Calibrated, 10.5, &["more calibration", "mixed precision", "INT8"], &["GPTQ"]),
        (INT4, Trained, 10.5, &["train longer", "INT8"], &["calibrat"]),
        (INT4, Rounded, 20.0, &["INT8", "mixed precision"], &["calibrat"]),
        (INT4, Rounded, f64::NAN, &["INT8"], &["calibrat"]),
        (three, Rounded, 12.0, &["3 bits", "calibrate", "INT4"], &[]),
        (two, Calibrated, 30.0, &["2 bits", "QAT", "INT4"], &[]),
        (int8, Rounded, 10.5, &["group of 128", "f16", "another checkpoint"], &["activations"]),
        (grouped8, Rounded, 10.5, &["f16", "another checkpoint"], &["group of"]),
        (TERNARY, Rounded, 9000.0, &["without training", "QAT", "900.0 times", "INT4"], &["accepted"]),
        (TERNARY, Rounded, f64::INFINITY, &["QAT"], &[]),
        (TERNARY, Trained, 10.5, &["train longer", "INT4"], &["without training"]),
    ];
    for (scheme, preparation, quantized, there, absent) in cases {
        let verdict = judged(|m| {
            (m.scheme, m.preparation, m.perplexity) =
                (scheme, preparation, PerplexityMeasurement { original: 10.0, quantized });
        });
        assert!(!verdict.accepted);
        let text = &verdict.recommendation;
        for words in there {
            assert!(text.contains(words), "{scheme} {preparation:?}: {text}");
        }
        for words in absent {
            assert!(!text.contains(words), "{scheme} {preparation:?}: {text}");
        }
    }
}

#[test]
fn recommendations_for_the_other_criteria() {
    let cases: [(Verdict, &str); 6] = [
        (judged(|m| m.failures = vec![failure(false)]), "calibrate"),
        (judged(|m| m.memory[0].packed_bytes = 1750), "2.00 times smaller"),
        (judged(|m| m.memory.clear()), "no layer was quantized"),
        (judged(|m| m.speed.as_mut().unwrap().rounds = rounds(&[1.0; 5])), "another device"),
        (judged(|m| m.perplexity.original = f64::NAN), "another checkpoint"),
        (
            judged(|m| {
                m.scheme = int(Bits::Eight, Granularity::Channel);
                m.activations = Activations::Int8;
                m.perplexity.quantized = 9.0;
            }),
            "keep the activations in f32",
        ),
    ];
    for (verdict, words) in cases {
        assert!(!verdict.accepted);
        assert!(verdict.recommendation.contains(words), "{}", verdict.recommendation);
    }
    let verdict = judged(|m| {
        m.perplexity.quantized = 8.5;
        m.worst_layers = ["a", "b", "c", "d"].map(String::from).to_vec();
    });
    assert!(verdict.recommendation.contains("INT8 for a, b and c;"), "{}", verdict.recommendation);
}
