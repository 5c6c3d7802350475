//! Llama 3.1's RoPE scaling, which GGUF files store as a tensor of frequency divisors.

use crate::error::{Error, Result};
use serde_json::{Value, json};

/// Parameters of Llama 3.1's RoPE scaling.
pub(super) struct Llama3 {
    pub(super) factor: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) original: f64,
}

impl Llama3 {
    /// The divisor of frequency `i` of a head.
    pub(super) fn divisor(&self, theta: f64, head_dim: u64, i: u64) -> f64 {
        self.divisor_at(wavelength(theta, head_dim, i))
    }

    fn divisor_at(&self, wavelength: f64) -> f64 {
        if wavelength < self.original / self.high {
            1.0
        } else if wavelength > self.original / self.low {
            self.factor
        } else {
            let share = (self.original / wavelength - self.low) / (self.high - self.low);
            1.0 / ((1.0 - share) / self.factor + share)
        }
    }
}

/// The wavelength, in tokens, of frequency `i` of a head.
fn wavelength(theta: f64, head_dim: u64, i: u64) -> f64 {
    2.0 * std::f64::consts::PI * libm::pow(theta, (2 * i) as f64 / head_dim as f64)
}

/// Relative tolerance between a file's factor, computed in `f32`, and ours, computed in `f64`.
const FACTOR_TOLERANCE: f64 = 1e-5;

/// The maximum number of bands on the ramp from which the original context length is derived.
const MOST_TRIED: usize = 8;

/// Original context lengths as powers of two. The likeliest come first, because several can give the same factors.
const EXPONENTS: [u32; 17] = [13, 12, 14, 11, 15, 16, 17, 10, 9, 8, 18, 19, 20, 21, 22, 23, 24];

/// A frequency of a head, and its divisor in the file.
struct Band {
    wavelength: f64,
    divisor: f64,
}

/// Finds parameters of Llama 3.1's scaling that divide the frequencies by `factors`.
///
/// Files do not store the parameters, and several sets give the same factors: only the wavelengths at which the ramp
/// begins and ends matter, and only as far as the head's frequencies reveal them. The usual parameters are tried first,
/// then candidates derived from the factors.
pub(super) fn scaling_of_factors(theta: f64, head_dim: u64, factors: &[f32]) -> Result<Value> {
    let bands: Vec<Band> = (0..)
        .zip(factors)
        .map(|(i, &divisor)| Band { wavelength: wavelength(theta, head_dim, i), divisor: divisor.into() })
        .collect();
    let fits = |scaling: &Llama3| {
        let sound = [scaling.factor, scaling.high, scaling.original].iter().all(|value| value.is_finite());
        sound
            && bands.iter().all(|band| {
                let expected = scaling.divisor_at(band.wavelength);
                (band.divisor - expected).abs() <= FACTOR_TOLERANCE * expected
            })
    };
    let all_there = factors.len() as u64 == head_dim / 2;
    let Some(scaling) = candidates(&bands).into_iter().filter(|_| all_there).find(fits) else {
        return Err(Error::unsupported_model(
            "expected `rope_freqs.weight` to hold the factors of Llama 3.1's RoPE scaling but found other factors",
        ));
    };
    let original = match scaling.original {
        whole if libm::trunc(whole) == whole => json!(whole as u64),
        broken => json!(broken),
    };
    Ok(json!({
        "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low, "high_freq_factor": scaling.high,
        "original_max_position_embeddings": original,
    }))
}

/// Candidate parameters, the likeliest first.
fn candidates(bands: &[Band]) -> Vec<Llama3> {
    let largest = bands.iter().map(|band| band.divisor).fold(1.0, f64::max);
    let usual = |factor: f64, original: f64| Llama3 { factor, low: 1.0, high: 4.0, original };
    let mut found = vec![usual(largest, 8192.0)];
    // In a head too short to reach the full factor, the last band lies on the ramp and gives the factor for each
    // context length.
    if let Some(last) = bands.last() {
        for exponent in EXPONENTS {
            let original = f64::from(1u32 << exponent);
            let share = (original / last.wavelength - 1.0) / 3.0;
            let factor = (1.0 - share) / (1.0 / last.divisor - share);
            found.extend([
                usual(largest, original),
                usual(libm::round(factor), original),
                usual(factor, original),
            ]);
        }
    }
    let kept = |band: &Band| (1.0 / band.divisor - 1.0 / largest) / (1.0 - 1.0 / largest);
    let near = |a: f64, b: f64| (a - b).abs() <= FACTOR_TOLERANCE * b;
    let ramp: Vec<&Band> =
        bands.iter().filter(|band| !near(band.divisor, 1.0) && !near(band.divisor, largest)).collect();
    // The usual steepness with another context length. Any band on the ramp gives it; bands suffer differently from
    // rounding.
    for band in ramp.iter().step_by(ramp.len().div_ceil(MOST_TRIED).max(1)) {
        let original = band.wavelength * (1.0 + 3.0 * kept(band));
        found.extend([usual(largest, libm::round(original)), usual(largest, original)]);
    }
    found.extend(general(bands, &ramp, largest, kept));
    found
}

/// Fits the ramp to the bands with any steepness, in frequencies: the full factor applies below `low`, none above
/// `high`. With at most one band on the ramp, `high` is the lowest unscaled frequency, or as close to it as the highest
/// fully scaled frequency allows.
fn general(bands: &[Band], ramp: &[&Band], largest: f64, kept: impl Fn(&Band) -> f64) -> Option<Llama3> {
    let at = |band: &Band| 1.0 / band.wavelength;
    let is_whole = |band: &&Band| (band.divisor - 1.0).abs() <= FACTOR_TOLERANCE;
    let is_scaled = |band: &&Band| (band.divisor - largest).abs() <= FACTOR_TOLERANCE * largest;
    let below = bands.iter().filter(is_scaled).map(at).fold(0.0, f64::max);
    let above = bands.iter().filter(is_whole).map(at).reduce(f64::min).unwrap_or(2.0 * below);
    let (low, high) = match *ramp {
        [] => (below, above),
        [one] => {
            let share = kept(one);
            let high = above.min((at(one) - (1.0 - share) * below) / share);
            ((at(one) - share * high) / (1.0 - share), high)
        }
        [first, .., last] => {
            let slope = (kept(first) - kept(last)) / (at(first) - at(last));
            let low = at(last) - kept(last) / slope;
            (low, low + 1.0 / slope)
        }
    };
    (low > 0.0 && high > low).then(|| Llama3 {
        factor: largest,
        low: 1.0,
        high: high / low,
        original: 1.0 / low,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(scaling: &Llama3, theta: f64, head_dim: u64) -> Value {
        let factors: Vec<f32> =
            (0..head_dim / 2).map(|i| scaling.divisor(theta, head_dim, i) as f32).collect();
        scaling_of_factors(theta, head_dim, &factors).unwrap()
    }

    #[test]
    fn usual_parameters_are_found_as_they_were_given() {
        for (factor, original, theta, head_dim) in [
            (8.0, 8192.0, 500_000.0, 128),
            (32.0, 8192.0, 500_000.0, 64),
            (4.0, 4096.0, 10_000.0, 64),
            (8.0, 2048.0, 10_000.0, 16),
            (16.0, 32768.0, 1_000_000.0, 128),
            (8.0, 6000.0, 500_000.0, 128),
            // So short a head has no frequency with the full factor.
            (8.0, 8192.0, 10_000.0, 8),
        ] {
            let given = Llama3 { factor, low: 1.0, high: 4.0, original };
            let expected = json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": original as u64,
            });
            assert_eq!(found(&given, theta, head_dim), expected);
        }
    }

    proptest! {
        /// The parameters found must divide every frequency as the given ones do.
        #[test]
        fn other_parameters_are_found_by_what_they_do(
            factor in 1.01f64..100.0,
            low in 0.3f64..8.0,
            steepness in 1.05f64..20.0,
            original in 64.0f64..1e6,
            theta in prop::sample::select(vec![1e4, 5e5, 1e6]),
            head_dim in prop::sample::select(vec![4u64, 8, 16, 32, 64, 128]),
        ) {
            let given = Llama3 { factor, low, high: low * steepness, original };
            let factors: Vec<f32> =
                (0..head_dim / 2).map(|i| given.divisor(theta, head_dim, i) as f32).collect();
            prop_assume!(factors.iter().any(|&factor| factor != 1.0));
            let found = scaling_of_factors(theta, head_dim, &factors).unwrap();
            let number = |key: &str| found[key].as_f64().unwrap();
            let found = Llama3 {
                factor: number("factor"),
                low: number("low_freq_factor"),
                high: number("high_freq_factor"),
                original: number("original_max_position_embeddings"),
            };
            for i in 0..head_dim / 2 {
                let (a, b) = (given.divisor(theta, head_dim, i), found.divisor(theta, head_dim, i));
                prop_assert!((a / b - 1.0).abs() < 3.0 * FACTOR_TOLERANCE, "{a} became {b}");
            }
        }

        #[test]
        fn no_factors_make_it_panic(
            factors in prop::collection::vec(any::<f32>(), 0..9),
            theta in any::<f64>(),
        ) {
            _ = scaling_of_factors(theta, 16, &factors);
        }
    }
}
