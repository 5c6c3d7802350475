//! What a layout does with a matrix that it cannot hold as wanted. Floor 3.

use super::TargetLayout;
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
    /// least 16 and at most the wanted one that divides `cols`; else one scale per channel; else floating point.
    pub fn fit(self, rows: usize, cols: usize, wanted: Scheme) -> Fit {
        let Err(reason) = self.can_hold(rows, cols, wanted) else {
            return Fit { scheme: Some(wanted), reason: None };
        };
        let scheme = match wanted {
            Scheme::Integer { bits, granularity: Granularity::Group(size), symmetric } => {
                let with = |granularity| Scheme::Integer { bits, granularity, symmetric };
                (MIN_GROUP..=size.min(cols))
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
}

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
        use TargetLayout::{BitNet, CompressedTensors};
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
