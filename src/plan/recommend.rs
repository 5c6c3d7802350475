//! The recommended precision, with a reason.
//!
//! Small models have little redundancy, so rounding costs them more quality and saves little memory. For large models
//! the opposite holds.

use super::memory::{Precision, PrecisionPlan};
use serde::Serialize;

/// Below this many parameters: INT8.
const SMALL_MODEL: u64 = 30_000_000;
/// Up to this many: INT4. Above: INT4, or INT8 if memory allows.
const MEDIUM_MODEL: u64 = 300_000_000;

/// A recommended precision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recommendation {
    /// Precision of the linear layers.
    pub precision: Precision,
    /// Whether it fits in the given memory; null if none was given.
    pub fits: Option<bool>,
    /// The reason, in one sentence.
    pub reason: String,
}

/// The recommendation for a model with `parameters` parameters and these plans.
pub(super) fn recommend(parameters: u64, plans: &[PrecisionPlan], memory: Option<u64>) -> Recommendation {
    let fits = |precision: Precision| {
        memory
            .map(|memory| plans.iter().any(|plan| plan.precision == precision && plan.total_bytes <= memory))
    };
    let (precision, reason) = match parameters {
        0..SMALL_MODEL => (
            Precision::Int8,
            "below 30M parameters INT4 costs too much quality, and INT8 is small enough".to_owned(),
        ),
        SMALL_MODEL..=MEDIUM_MODEL => (
            Precision::Int4,
            "from 30M to 300M parameters INT4 is a good balance of size and quality".to_owned(),
        ),
        _ => match fits(Precision::Int8) {
            Some(true) => (
                Precision::Int8,
                "above 300M parameters memory decides, and INT8, which keeps more quality, fits".to_owned(),
            ),
            Some(false) => {
                (Precision::Int4, "above 300M parameters memory decides, and INT8 does not fit".to_owned())
            }
            None => (
                Precision::Int4,
                "above 300M parameters INT4 costs little quality; with enough memory INT8 costs less"
                    .to_owned(),
            ),
        },
    };
    let fits_memory = fits(precision);
    let reason = match fits_memory {
        Some(false) => {
            format!("{reason}; it does not fit in the given memory: {}", instead(precision, &fits))
        }
        _ => reason,
    };
    Recommendation { precision, fits: fits_memory, reason }
}

fn instead(precision: Precision, fits: &impl Fn(Precision) -> Option<bool>) -> &'static str {
    if precision == Precision::Int8 && fits(Precision::Int4) == Some(true) {
        "INT4 does, at a loss of quality"
    } else {
        "take a shorter context or a smaller model"
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MemoryPlan, ModelDims, PlanOptions};
    use super::*;

    #[test]
    fn by_size_and_memory() {
        let bytes_of = |parameters, precision| {
            let plan = MemoryPlan::for_parameters(parameters, &PlanOptions::default()).unwrap();
            plan.precisions.iter().find(|p| p.precision == precision).unwrap().total_bytes
        };
        use Precision::{Int4, Int8};
        let cases = [
            (260_000, None, Int8, None, "below 30M"),
            (29_000_000, None, Int8, None, "below 30M"),
            (31_000_000, None, Int4, None, "30M to 300M"),
            (290_000_000, None, Int4, None, "30M to 300M"),
            (500_000_000, None, Int4, None, "above 300M"),
            (500_000_000, Some(bytes_of(500_000_000, Int8)), Int8, Some(true), "fits"),
            (500_000_000, Some(bytes_of(500_000_000, Int8) - 1), Int4, Some(true), "INT8 does not fit"),
            (500_000_000, Some(bytes_of(500_000_000, Int4) - 1), Int4, Some(false), "smaller model"),
            (15_000_000, Some(bytes_of(15_000_000, Int8)), Int8, Some(true), "below 30M"),
            (15_000_000, Some(bytes_of(15_000_000, Int4)), Int8, Some(false), "INT4 does"),
            (15_000_000, Some(1000), Int8, Some(false), "smaller model"),
            (100_000_000, Some(1000), Int4, Some(false), "smaller model"),
        ];
        for (parameters, memory, precision, fits, words) in cases {
            let options = PlanOptions { memory, ..PlanOptions::default() };
            let found = MemoryPlan::for_parameters(parameters, &options).unwrap().recommendation;
            assert_eq!((found.precision, found.fits), (precision, fits), "{parameters} in {memory:?}");
            assert!(found.reason.contains(words), "{}", found.reason);
        }
    }

    #[test]
    fn the_borders() {
        for (parameters, precision) in [
            (29_999_999, Precision::Int8),
            (30_000_000, Precision::Int4),
            (300_000_000, Precision::Int4),
            (300_000_001, Precision::Int4),
        ] {
            assert_eq!(recommend(parameters, &[], None).precision, precision);
        }
        let dims = ModelDims::typical(1_000_000).unwrap();
        assert_eq!(
            MemoryPlan::new(dims, &PlanOptions::default()).unwrap().recommendation.precision,
            Precision::Int8
        );
    }
}
