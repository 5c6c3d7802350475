//! How GPTQ works: the order of columns, where scales come from, what a layer's output is compared with. Floor 2.

use crate::order;
use crate::quant::hessian::Hessian;

/// The order in which columns are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ColumnOrder {
    /// As they are stored.
    #[default]
    Stored,
    /// Groups from the one with the largest input to the one with the smallest, and so the columns of each group; scales are
    /// found on the way, and the result is stored like any other ("group-aware reordering").
    GroupAware,
    /// From the largest input to the smallest, on groups whose scales are found beforehand ("static groups"): the result
    /// is stored like any other.
    StaticGroups,
    /// From the largest input to the smallest, with groups along that order: the result names each column's group
    /// (`desc_act` with `g_idx`).
    GroupIndex,
}

impl ColumnOrder {
    /// The spelling in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stored => "none",
            Self::GroupAware => "group-aware",
            Self::StaticGroups => "static-groups",
            Self::GroupIndex => "group-index",
        }
    }

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
                order::sort_by(&mut groups, |a, b| {
                    b.len().cmp(&a.len()).then_with(|| descending(largest(a), largest(b)))
                });
                columns = groups.concat();
            }
        }
        let span = if self == Self::GroupAware { group_size } else { columns.len().max(1) };
        for part in columns.chunks_mut(span) {
            order::sort_by(part, |&a, &b| {
                descending(hessian.diagonal(a as usize), hessian.diagonal(b as usize))
            });
        }
        Some(columns)
    }
}

/// Where the scale of a group comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ScaleRule {
    /// The range of its weights, as GPTQ's authors have it.
    Range,
    /// The scale of least error, each weight's counted by `D`.
    #[default]
    LeastError,
}

impl ScaleRule {
    /// The spelling in records and options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Range => "range",
            Self::LeastError => "least-error",
        }
    }
}

/// Whose inputs make the outputs that a layer shall come near to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ReferenceInputs {
    /// The original model's: a layer makes up for what the layers before it lost, as far as it can.
    #[default]
    Original,
    /// Those that the quantized layers before it make, as GPTQ's authors have it.
    Quantized,
}

impl ReferenceInputs {
    /// The spelling in records and options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::Quantized => "quantized",
        }
    }
}

/// How GPTQ works.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GptqOptions {
    /// Share of the mean diagonal that is added to the diagonal.
    pub damping: f32,
    /// The order of the columns.
    pub order: ColumnOrder,
    /// Where the scale of a group comes from.
    pub scales: ScaleRule,
    /// How often codes and scales are gone over afterwards, each time for less output error; 0 for GPTQ alone. Not with
    /// [`ColumnOrder::GroupIndex`], whose groups are scattered.
    pub sweeps: usize,
    /// Whose inputs make the outputs that a layer shall come near to. The caller's affair: a [`Drift`](crate::quant::hessian::Drift) or none.
    pub reference: ReferenceInputs,
}

impl Default for GptqOptions {
    fn default() -> Self {
        Self {
            damping: 0.05,
            order: ColumnOrder::GroupAware,
            scales: ScaleRule::LeastError,
            sweeps: 2,
            reference: ReferenceInputs::Original,
        }
    }
}
