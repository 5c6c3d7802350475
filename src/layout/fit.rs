//! What a layout does with a matrix that it cannot hold as wanted.

use super::{TargetLayout, gguf};
use crate::quant::{Granularity, Scheme};

/// How a matrix will be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fit {
    /// The scheme to use; `None`: the weights stay in floating point.
    pub scheme: Option<Scheme>,
    /// Why it is not the wanted scheme; `None` when it is.
    pub reason: Option<String>,
}

/// The smallest group that takes another group's place: below it, scales cost more than they bring.
const MIN_GROUP: usize = 16;

impl TargetLayout {
    /// The scheme for a `[rows, cols]` matrix: the wanted one where the layout can hold it; else the largest group of at
    /// least 16 and at most the wanted one, or the layout's smallest, that divides `cols`; else one scale per channel; else floating point.
    pub fn fit(self, rows: usize, cols: usize, wanted: Scheme) -> Fit {
        let Err(reason) = self.can_hold(rows, cols, wanted) else {
            return Fit { scheme: Some(wanted), reason: None };
        };
        let scheme = match wanted {
            // It has one group size for all modules.
            _ if self == TargetLayout::Awq => None,
            Scheme::Integer { bits, granularity: Granularity::Group(size), symmetric } => {
                let with = |granularity| Scheme::Integer { bits, granularity, symmetric };
                (MIN_GROUP..=size.max(self.least_group()).min(cols))
                    .rev()
                    .filter(|group| cols.is_multiple_of(*group))
                    .map(|group| with(Granularity::Group(group)))
                    .chain([with(Granularity::Channel)])
                    .find(|&scheme| self.can_hold(rows, cols, scheme).is_ok())
            }
            _ => None,
        };
        Fit { scheme, reason: Some(reason) }
    }

    /// The smallest group that has a scale of its own.
    fn least_group(self) -> usize {
        if self == TargetLayout::Gguf { gguf::SMALL_BLOCK } else { 1 }
    }

    /// As [`fit`](Self::fit), for a module that the layout may not hold at all.
    pub fn fit_module(self, module: &str, rows: usize, cols: usize, wanted: Scheme) -> Fit {
        match self.can_hold_module(module) {
            Ok(()) => self.fit(rows, cols, wanted),
            Err(reason) => Fit { scheme: None, reason: Some(reason) },
        }
    }

    /// Whether modules of one checkpoint can have different schemes.
    ///
    /// # Errors
    /// Why not, as one clause for reports.
    pub fn can_hold_mixed(self) -> Result<(), String> {
        match self {
            Self::CompressedTensors | Self::Gptq(_) | Self::Gguf => Ok(()),
            Self::Awq | Self::BitNet => Err("it has one scheme for all modules".to_owned()),
        }
    }

    /// Whether the layout can hold such a scheme at all, in matrices of a fitting shape.
    ///
    /// # Errors
    /// Why not, as one clause for reports.
    pub fn holds_kind(self, scheme: Scheme) -> Result<(), String> {
        // Any width is some multiple of its group.
        let cols = match scheme.granularity() {
            Granularity::Group(size) => size.checked_mul(FITTING).unwrap_or(size),
            _ => FITTING,
        };
        let channel = |scheme| match scheme {
            Scheme::Integer { bits, symmetric, granularity: Granularity::Group(_) } => {
                Scheme::Integer { bits, symmetric, granularity: Granularity::Channel }
            }
            other => other,
        };
        self.can_hold(FITTING, cols, scheme).or_else(|reason| {
            // Another group size can be taken instead.
            self.can_hold(FITTING, FITTING, channel(scheme)).map_err(|_| reason)
        })
    }
}

/// Rows and columns that every layout can cut into its words.
const FITTING: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Bits;

    #[test]
    fn odd_widths_take_the_next_best() {
        let group = |size| Scheme::Integer {
            bits: Bits::Four,
            granularity: Granularity::Group(size),
            symmetric: true,
        };
        let channel =
            Scheme::Integer { bits: Bits::Four, granularity: Granularity::Channel, symmetric: true };
        let ternary = Scheme::Ternary { granularity: Granularity::Tensor };
        let ternary_channel = Scheme::Ternary { granularity: Granularity::Channel };
        use TargetLayout::{BitNet, CompressedTensors, Gguf};
        // (layout, rows, cols, wanted, what it becomes)
        let cases = [
            (CompressedTensors, 64, 128, group(32), Some(group(32))),
            (CompressedTensors, 64, 172, group(32), Some(channel)),
            (CompressedTensors, 64, 172, channel, Some(channel)),
            (CompressedTensors, 64, 64, group(128), Some(group(64))),
            (CompressedTensors, 64, 96, group(64), Some(group(48))),
            (CompressedTensors, 64, 1000, group(128), Some(group(125))),
            (CompressedTensors, 64, 8, group(128), Some(channel)),
            (CompressedTensors, 64, 20, group(8), Some(channel)),
            (CompressedTensors, 64, 20, group(usize::MAX), Some(group(20))),
            (CompressedTensors, 3, 5, ternary_channel, Some(ternary_channel)),
            (BitNet, 64, 5, ternary, Some(ternary)),
            (BitNet, 63, 5, ternary, None),
            (BitNet, 64, 5, ternary_channel, None),
            (BitNet, 64, 32, group(32), None),
            (CompressedTensors, 0, 32, group(32), None),
            (Gguf, 64, 160, group(64), Some(group(64))),
            (Gguf, 64, 160, group(48), Some(group(32))),
            (Gguf, 64, 160, group(16), Some(group(32))),
            (Gguf, 64, 160, channel, Some(channel)),
            (Gguf, 64, 172, group(32), None),
            (Gguf, 64, 96, ternary_channel, Some(ternary_channel)),
        ];
        for (layout, rows, cols, wanted, expected) in cases {
            let fit = layout.fit(rows, cols, wanted);
            assert_eq!(fit.scheme, expected, "{} {rows} x {cols} {wanted}", layout.name());
            assert_eq!(fit.reason.is_none(), expected == Some(wanted), "{fit:?}");
        }
        let reason = CompressedTensors.fit(64, 172, group(32)).reason.unwrap();
        assert_eq!(reason, "groups of 32 do not divide 172 columns");
    }
}
