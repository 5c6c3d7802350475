//! Kernel variants that may replace base kernels, and the fallbacks from variants that fail.

/// An optional kernel implementation, which some devices lack or execute incorrectly. Its base computes the same from
/// the same operands, with activations of the same precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    /// Four INT8 products at a time, with `dot4I8Packed`.
    PackedDot,
    /// A norm fused with the INT8 rounding for the next linear step.
    RoundingNorm,
    /// Sums over invocations with subgroup shuffles.
    Subgroups,
    /// Tiles of F16 weights as 16-bit floats (`shader-f16`), in products of many tokens.
    HalfTiles,
}

impl Variant {
    pub(super) const ALL: [Self; 4] = [Self::PackedDot, Self::RoundingNorm, Self::Subgroups, Self::HalfTiles];

    /// Name in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::PackedDot => "packed dot products",
            Self::RoundingNorm => "norms that round",
            Self::Subgroups => "sums by subgroups",
            Self::HalfTiles => "16-bit tiles",
        }
    }
}

/// The set of active variants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Variants {
    pub(super) packed_dot: bool,
    pub(super) rounding_norm: bool,
    /// Smallest subgroup size, a power of two; `None` if subgroups are not used.
    pub(super) subgroups: Option<u32>,
    pub(super) half_tiles: bool,
}

impl Variants {
    pub(super) fn has(self, variant: Variant) -> bool {
        match variant {
            Variant::PackedDot => self.packed_dot,
            Variant::RoundingNorm => self.rounding_norm,
            Variant::Subgroups => self.subgroups.is_some(),
            Variant::HalfTiles => self.half_tiles,
        }
    }

    pub(super) fn without(mut self, variant: Variant) -> Self {
        match variant {
            Variant::PackedDot => self.packed_dot = false,
            Variant::RoundingNorm => self.rounding_norm = false,
            Variant::Subgroups => self.subgroups = None,
            Variant::HalfTiles => self.half_tiles = false,
        }
        self
    }

    /// Sets to try after a check with these failed: each variant disabled in turn, then all disabled.
    pub(super) fn fallbacks(self) -> Vec<Self> {
        let running = Variant::ALL.into_iter().filter(|&variant| self.has(variant));
        let mut fallbacks: Vec<Self> = running.map(|variant| self.without(variant)).collect();
        if fallbacks.len() > 1 {
            fallbacks.push(Self::default());
        }
        fallbacks
    }

    /// Variants in `self` but not in `fewer`.
    pub(super) fn and_not(self, fewer: Self) -> impl Iterator<Item = Variant> {
        Variant::ALL.into_iter().filter(move |&variant| self.has(variant) && !fewer.has(variant))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_variant_is_given_up_before_all() {
        let variants = |packed_dot, rounding_norm, subgroups| Variants {
            packed_dot,
            rounding_norm,
            subgroups,
            half_tiles: false,
        };
        let none = variants(false, false, None);
        for (running, fallbacks) in [
            (none, vec![]),
            (variants(true, false, None), vec![none]),
            (
                variants(true, true, None),
                vec![variants(false, true, None), variants(true, false, None), none],
            ),
            (Variants { half_tiles: true, ..none }, vec![none]),
            (
                variants(true, true, Some(32)),
                vec![
                    variants(false, true, Some(32)),
                    variants(true, false, Some(32)),
                    variants(true, true, None),
                    none,
                ],
            ),
        ] {
            assert_eq!(running.fallbacks(), fallbacks);
        }
        let (running, fewer) = (variants(true, true, Some(8)), variants(false, true, None));
        let given_up: Vec<Variant> = running.and_not(fewer).collect();
        assert_eq!(given_up, [Variant::PackedDot, Variant::Subgroups]);
    }
}
