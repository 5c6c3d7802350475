//! How GPTQ works: the order of columns, where scales come from, what a layer's output is compared with.

use crate::options::{Bounds, named, options};
use crate::quant::hessian::Hessian;
use crate::sort;

named! {
    /// The order in which columns are rounded.
    #[derive(Default)]
    pub enum ColumnOrder {
        /// As columns are stored
        #[default]
        Stored = "none",
        /// Groups with the largest inputs first, and so the columns of each group; the result is stored like any other
        GroupAware = "group-aware",
        /// Columns with the largest inputs first, on groups as they are stored, whose scales are found beforehand
        StaticGroups = "static",
        /// Columns with the largest inputs first, with groups along that order; the result names each column's group (g_idx)
        GroupIndex = "group-index",
    }
}

impl ColumnOrder {
    /// The input column at each place, or `None` for the stored order.
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
                // A group that is shorter than the others stays last, so that all begin at multiples of the size.
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
    /// Where the scale of a group comes from.
    #[derive(Default)]
    pub enum ScaleRule {
        /// The range of its weights, as GPTQ's authors have it
        Range = "range",
        /// A search for the least error, each weight's counted by its importance
        #[default]
        LeastError = "least-error",
    }
}

named! {
    /// Whose inputs define the outputs that a quantized layer is fitted to.
    #[derive(Default)]
    pub enum ReferenceInputs {
        /// The original model's: a layer makes up for what the layers before it lost
        #[default]
        Original = "original",
        /// Those that the quantized layers before it make, as GPTQ's authors have it
        Quantized = "quantized",
    }
}

options! {
    /// How GPTQ works.
    #[derive(Copy)]
    pub struct GptqOptions {
        /// gptq: share of the Hessian's mean diagonal that is added to its diagonal
        pub damping: f32 = 0.05, within Bounds::from(0.0).below(1.0);
        /// gptq: the order in which columns are rounded
        pub act_order: ColumnOrder = ColumnOrder::GroupAware;
        /// gptq: where the scale of a group comes from
        pub scales: ScaleRule = ScaleRule::LeastError;
        /// gptq: how often codes and scales are gone over again for less output error; 0: gptq alone. Not with groups along
        /// the order of columns, which are scattered
        pub refinement_passes: usize = 2;
        /// gptq: the inputs that define a layer's target output
        pub reference_inputs: ReferenceInputs = ReferenceInputs::Original;
    }
}
