//! Rotary position embedding (Su et al. 2021): the table of cosines and sines, shared by all layers.
//!
//! The table is computed on the host with `libm`, so every backend rotates by the same numbers.

use super::config::ModelConfig;
use crate::backend::{Backend, Element};
use crate::error::Result;

/// Rotary frequencies and their scaling for longer contexts.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// Scaling of the frequencies.
    pub scaling: RopeScaling,
}

/// How the frequencies are scaled after training.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Unscaled.
    None,
    /// Every frequency is divided by `factor` (position interpolation, Chen et al. 2023).
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3.1: the frequencies of long wavelengths are divided by `factor`, those of short ones are kept, with a
    /// linear ramp between.
    Llama3 {
        /// Divisor of the frequencies of long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are short.
        high_freq_factor: f64,
        /// The context length of the original training.
        original_max_position_embeddings: f64,
    },
}

impl RopeConfig {
    /// Angle per position for each pair of a head, `[head_dim / 2]`.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|i| {
                let base = 1.0 / libm::pow(self.theta, (2 * i) as f64 / head_dim as f64);
                self.scaled(base) as f32
            })
            .collect()
    }

    fn scaled(&self, frequency: f64) -> f64 {
        match self.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
                if wavelength < original_max_position_embeddings / high_freq_factor {
                    frequency
                } else if wavelength > original_max_position_embeddings / low_freq_factor {
                    frequency / factor
                } else {
                    let share = (original_max_position_embeddings / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - share) * frequency / factor + share * frequency
                }
            }
        }
    }

    /// The table of the first `positions` positions, `[positions, head_dim]`: the cosines of a position, then its
    /// sines.
    ///
    /// The angle is the `f32` product of position and frequency, as in transformers. Its cosine and sine are exact to
    /// the last place of `f32`.
    pub fn table(&self, head_dim: usize, positions: usize) -> Vec<f32> {
        let frequencies = self.frequencies(head_dim);
        let mut table = Vec::with_capacity(positions * head_dim);
        for position in 0..positions {
            let angles = frequencies.iter().map(|frequency| f64::from(position as f32 * frequency));
            table.extend(angles.clone().map(|angle| libm::cos(angle) as f32));
            table.extend(angles.map(|angle| libm::sin(angle) as f32));
        }
        table
    }
}

/// Cosines and sines for the largest number of positions needed so far.
pub struct RopeTable<B: Backend> {
    table: Option<B::Buffer>,
    positions: usize,
}

impl<B: Backend> Default for RopeTable<B> {
    fn default() -> Self {
        Self { table: None, positions: 0 }
    }
}

impl<B: Backend> RopeTable<B> {
    /// The table, with at least `positions` rows.
    pub fn reserve(&mut self, backend: &mut B, config: &ModelConfig, positions: usize) -> Result<&B::Buffer> {
        if self.table.is_none() || self.positions < positions {
            let values = config.rope.table(config.head_dim, positions);
            let mut buffer = backend.buffer(Element::F32, values.len())?;
            backend.write_f32(&mut buffer, &values)?;
            self.positions = positions;
            self.table = Some(buffer);
        }
        Ok(self.table.as_ref().expect("just made"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_zero_does_not_rotate() {
        let rope = RopeConfig { theta: 10_000.0, scaling: RopeScaling::None };
        assert_eq!(rope.table(4, 1), [1.0, 1.0, 0.0, 0.0]);
        assert_eq!(rope.frequencies(4), [1.0, 0.01]);
    }

    #[test]
    fn llama3_keeps_short_wavelengths_and_stretches_long_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        let plain = RopeConfig { theta: 500_000.0, scaling: RopeScaling::None }.frequencies(128);
        let scaled = RopeConfig { theta: 500_000.0, scaling }.frequencies(128);
        assert_eq!(plain[0], scaled[0]);
        assert_eq!(plain[63] / 8.0, scaled[63]);
        assert!(scaled.windows(2).all(|pair| pair[0] > pair[1]));
    }
}
