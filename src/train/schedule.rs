//! Learning-rate schedules.

use super::optimizer::Rate;
use crate::options::named;

named! {
    /// How the learning rate decays after the warmup.
    #[derive(Default)]
    pub enum Decay {
        /// Along a half cosine
        #[default]
        Cosine = "cosine",
        /// Along a half cosine; from the middle on a third lower and without weight decay, for ternary weights
        TwoStage = "two-stage",
        /// Linearly over the last fifth, constant before
        Trapezoid = "trapezoid",
        /// Not at all
        Constant = "constant",
    }
}

/// The learning rate of every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The shape of the decay.
    pub decay: Decay,
    /// Steps in all.
    pub steps: u64,
    /// Warmup steps, in which the rate grows linearly to `peak`.
    pub warmup: u64,
    /// The highest learning rate.
    pub peak: f64,
    /// The final rate as a fraction of `peak`.
    pub last: f64,
    /// Weight decay.
    pub weight_decay: f64,
}

/// Factor on the rate in the second half of the two-stage schedule (Ma et al., *The Era of 1-bit LLMs: Training Tips,
/// Code and FAQ*, 2024).
const SECOND_STAGE: f64 = 2.0 / 3.0;
/// The fraction of a trapezoid in which the rate falls (Hägele et al., *Scaling Laws and Compute-Optimal Training
/// Beyond Fixed Training Durations*, 2024).
const FALLING: f64 = 0.2;

impl Schedule {
    /// Rate and weight decay of step `step`, from 0.
    pub fn at(&self, step: u64) -> Rate {
        let Self { decay, steps, warmup, peak, last, weight_decay } = *self;
        if step < warmup {
            return Rate { rate: peak * (step + 1) as f64 / warmup as f64, decay: weight_decay };
        }
        let done = (step - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
        let done = done.min(1.0);
        let cosine = last + (1.0 - last) * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * done));
        match decay {
            Decay::Cosine => Rate { rate: peak * cosine, decay: weight_decay },
            Decay::TwoStage if done < 0.5 => Rate { rate: peak * cosine, decay: weight_decay },
            Decay::TwoStage => Rate { rate: peak * cosine * SECOND_STAGE, decay: 0.0 },
            Decay::Trapezoid => {
                let fallen = ((done - (1.0 - FALLING)) / FALLING).max(0.0);
                Rate { rate: peak * (1.0 - (1.0 - last) * fallen), decay: weight_decay }
            }
            Decay::Constant => Rate { rate: peak, decay: weight_decay },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_their_names() {
        let schedule =
            |decay| Schedule { decay, steps: 30, warmup: 5, peak: 1e-3, last: 0.1, weight_decay: 0.1 };
        // (decay, step, share of the peak, weight decay)
        let cases = [
            (Decay::Cosine, 0, 0.2, 0.1),
            (Decay::Cosine, 4, 1.0, 0.1),
            (Decay::Cosine, 5, 1.0, 0.1),
            (Decay::Cosine, 30, 0.1, 0.1),
            (Decay::Cosine, 31, 0.1, 0.1),
            (Decay::TwoStage, 5, 1.0, 0.1),
            (Decay::TwoStage, 30, 0.1 * 2.0 / 3.0, 0.0),
            (Decay::Trapezoid, 25, 1.0, 0.1),
            (Decay::Trapezoid, 30, 0.1, 0.1),
            (Decay::Constant, 30, 1.0, 0.1),
        ];
        for (decay, step, share, weight_decay) in cases {
            let found = schedule(decay).at(step);
            assert!((found.rate - share * 1e-3).abs() < 1e-12, "{decay:?} {step}: {found:?}");
            assert_eq!(found.decay, weight_decay, "{decay:?} {step}");
        }
        // Without steps there is no decay.
        assert_eq!(Schedule { steps: 0, warmup: 0, ..schedule(Decay::Cosine) }.at(0).rate, 1e-3);
    }
}
