//! Options of GPTQ: column order, scales, reference inputs.

use crate::options::{Bounds, named, options};
use crate::quant::hessian::Hessian;
use crate::sort;

named! {
    /// Column orders of rounding.
    #[derive(Default)]
    pub enum ColumnOrder {
        /// Stored order
        #[default]
        Stored = "none",
        /// Groups with the largest inputs first, and columns within a group likewise; the order is not stored
        GroupAware = "group-aware",
        /// Columns with the largest inputs first; groups in stored order, with scales determined beforehand
        StaticGroups = "static",
        /// Columns with the largest inputs first, with groups along that order; each column's group is stored (g_idx)
        GroupIndex = "group-index",
    }
}

impl ColumnOrder {
    /// The input column at each position, or `None` for the stored order.
    pub(super) fn columns(self, hessian: &Hessian, group_size: usize) -> Option<Vec<u32>> {
        let mut columns: Vec<u32> = (0..hessian.size() as u32).collect();
        // Sorting is stable, so equal diagonals keep their order.
        let descending = |a: f32, b: f32| b.total_cmp(&a);
        match self {
            Self::Stored => return None,
            Self::StaticGroups | Self::GroupIndex => {}
            Self::GroupAware => {
                let largest =
                    |group: &[u32]| group.iter().map(|&c| hessian.diagonal(c as usize)).fold(0.0, f32::max);
                let mut groups: Vec<&[u32]> = columns.chunks(group_size).collect();
                // A shorter group stays last, so that all groups begin at multiples of the size.
                sort::sort_by(&mut groups, |a, b| {
                    b.len().cmp(&a.len()).then_with(|| descending(largest(a), largest(b)))
                });
                columns = groups.concat();
            }
        }
        let span = if self == Self::GroupAware { group_size } else { columns.len().max(1) };
        for part in columns.chunks_mut(span) {
            sort::sort_by(part, |&a, &b| {
                descending(hessian.diagonal(a as usize), hessian.diagonal(b as usize))
            });
        }
        Some(columns)
    }
}

named! {
    /// Rules for a group's scale.
    #[derive(Default)]
    pub enum ScaleRule {
        /// The range of its weights, as in GPTQ's paper
        Range = "range",
        /// A search for the least error, weighted by importance
        #[default]
        LeastError = "least-error",
    }
}

named! {
    /// Inputs that define a layer's target output.
    #[derive(Default)]
    pub enum ReferenceInputs {
        /// The unquantized model's; corrects errors of earlier layers
        #[default]
        Original = "original",
        /// The quantized model's, as in GPTQ's paper
        Quantized = "quantized",
    }
}

options! {
    /// Options of GPTQ.
    #[derive(Copy)]
    pub struct GptqOptions {
        /// gptq: damping, as a share of the Hessian's mean diagonal
        pub damping: f32 = 0.05, within Bounds::from(0.0).below(1.0);
        /// gptq: column order of rounding
        pub act_order: ColumnOrder = ColumnOrder::GroupAware;
        /// gptq: rule for a group's scale
        pub scales: ScaleRule = ScaleRule::LeastError;
        /// gptq: refinement passes over codes and scales after rounding; 0: none; ignored with act-order group-index
        pub refinement_passes: usize = 2;
        /// gptq: the inputs that define a layer's target output
        pub reference_inputs: ReferenceInputs = ReferenceInputs::Original;
    }
}
