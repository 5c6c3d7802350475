//! The closest scheme that a layout can hold for a matrix.

use super::{TargetLayout, gguf};
use crate::quant::{Granularity, Scheme};

/// How a matrix is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fit {
    /// The scheme to use; `None` for floating point.
    pub scheme: Option<Scheme>,
    /// Why it is not the requested scheme; `None` if it is.
    pub reason: Option<String>,
}

/// The smallest substitute group size: below it, scales cost more than they gain.
const MIN_GROUP: usize = 16;

impl TargetLayout {
    /// The scheme for a `[rows, cols]` matrix, the first of these that the layout can hold:
    ///
    /// 1. the requested scheme;
    /// 2. for a grouped integer scheme, the largest group size that divides `cols`, at least 16 and at most the
    ///    requested size (or the layout's smallest group, if that is larger);
    /// 3. for a grouped integer scheme, one scale per channel;
    /// 4. floating point.
    pub fn fit(self, rows: usize, cols: usize, wanted: Scheme) -> Fit {
        let Err(reason) = self.can_hold(rows, cols, wanted) else {
            return Fit { scheme: Some(wanted), reason: None };
        };
        let scheme = match wanted {
            // AWQ has one group size for all modules.
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

    /// The smallest group that the layout can give its own scale.
    fn least_group(self) -> usize {
        if self == TargetLayout::Gguf { gguf::SMALL_BLOCK } else { 1 }
    }

    /// As [`fit`](Self::fit), for a module that the layout may be unable to hold.
    pub fn fit_module(self, module: &str, rows: usize, cols: usize, wanted: Scheme) -> Fit {
        match self.can_hold_module(module) {
            Ok(()) => self.fit(rows, cols, wanted),
            Err(reason) => Fit { scheme: None, reason: Some(reason) },
        }
    }

    /// Whether modules of one checkpoint can have different schemes.
    ///
    /// # Errors
    /// The reason, as one clause for reports.
    pub fn can_hold_mixed(self) -> Result<(), String> {
        match self {
            Self::CompressedTensors | Self::Gptq(_) | Self::Gguf => Ok(()),
            Self::Awq | Self::BitNet => Err("it has one scheme for all modules".to_owned()),
        }
    }

    /// Whether the layout can hold this kind of scheme for matrices of some shape.
    ///
    /// # Errors
    /// The reason, as one clause for reports.
    pub fn holds_kind(self, scheme: Scheme) -> Result<(), String> {
        // Assume a width that the group size divides.
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
            // Another group size may be used instead.
            self.can_hold(FITTING, FITTING, channel(scheme)).map_err(|_| reason)
        })
    }
}

/// Rows and columns that fill whole words in every layout.
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
        // (layout, rows, cols, requested, expected)
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
