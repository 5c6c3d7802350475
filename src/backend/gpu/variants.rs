//! Variants: kernels that a device may run in the place of base kernels, and those that were found wanting. Floor 4.

/// A way to compute a step that not every device has or does right. Its base computes the same from the same operands, with
/// activations of the same precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    /// Four INT8 products at a time, by `dot4I8Packed`.
    PackedDot,
    /// A norm that also rounds to INT8, where a linear step with INT8 activations comes next.
    RoundingNorm,
}

impl Variant {
    pub(super) const ALL: [Self; 2] = [Self::PackedDot, Self::RoundingNorm];

    /// The name in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::PackedDot => "packed dot products",
            Self::RoundingNorm => "norms that round",
        }
    }
}

/// Which variants run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Variants {
    pub(super) packed_dot: bool,
    pub(super) rounding_norm: bool,
}

impl Variants {
    pub(super) fn has(self, variant: Variant) -> bool {
        match variant {
            Variant::PackedDot => self.packed_dot,
            Variant::RoundingNorm => self.rounding_norm,
        }
    }

    pub(super) fn without(mut self, variant: Variant) -> Self {
        match variant {
            Variant::PackedDot => self.packed_dot = false,
            Variant::RoundingNorm => self.rounding_norm = false,
        }
        self
    }

    /// What to try where a check failed with these: each variant's base in turn, so that the others stay, then no variant.
    pub(super) fn fallbacks(self) -> Vec<Self> {
        let running = Variant::ALL.into_iter().filter(|&variant| self.has(variant));
        let mut fallbacks: Vec<Self> = running.map(|variant| self.without(variant)).collect();
        if fallbacks.len() > 1 {
            fallbacks.push(Self::default());
        }
        fallbacks
    }

    /// Those that run with `self` but not with `fewer`.
    pub(super) fn and_not(self, fewer: Self) -> impl Iterator<Item = Variant> {
        Variant::ALL.into_iter().filter(move |&variant| self.has(variant) && !fewer.has(variant))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_variant_is_given_up_before_all() {
        let variants = |packed_dot, rounding_norm| Variants { packed_dot, rounding_norm };
        for (running, fallbacks) in [
            (variants(false, false), vec![]),
            (variants(true, false), vec![variants(false, false)]),
            (
                variants(true, true),
                vec![variants(false, true), variants(true, false), variants(false, false)],
            ),
        ] {
            assert_eq!(running.fallbacks(), fallbacks);
        }
        let given_up: Vec<Variant> = variants(true, true).and_not(variants(false, true)).collect();
        assert_eq!(given_up, [Variant::PackedDot]);
    }
}
