//! The scratch slots of a walk's hidden states.

use crate::model::block::LinearInput;

/// The model that the samples run through.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// The model with replaced matrices.
    Quantized,
    /// The model of the checkpoint.
    Original,
}

/// The slot of the reference outputs of a parent module.
pub(super) const PARENT: &str = "parent";

/// By stream, each slot with the rows of all samples:
///
/// - the residual stream, if it is not kept;
/// - the kept residual stream before an even block, before an odd block, and after attention;
/// - two slots for the activations at an input, which alternate: one is written while the other is read.
const NAMES: [[&str; 6]; 2] = [
    ["residual", "residual-0", "residual-1", "residual-inside", "activations-0", "activations-1"],
    [
        "original-residual",
        "original-residual-0",
        "original-residual-1",
        "original-residual-inside",
        "original-activations-0",
        "original-activations-1",
    ],
];

/// The slots that a walk leaves in scratch.
pub fn slots() -> impl Iterator<Item = &'static str> {
    NAMES.as_flattened().iter().copied().chain([PARENT])
}

impl Stream {
    /// The slot of the residual stream before block `layer`. If `kept`, it differs from the slot before the previous
    /// block.
    pub(super) fn before(self, layer: usize, kept: bool) -> &'static str {
        NAMES[self as usize][if kept { 1 + layer % 2 } else { 0 }]
    }

    /// The slot of the residual stream after a block's attention.
    pub(super) fn inside(self, kept: bool) -> &'static str {
        NAMES[self as usize][if kept { 3 } else { 0 }]
    }

    /// The slot of the activations at an input.
    pub(super) fn activations(self, input: LinearInput) -> &'static str {
        NAMES[self as usize][4 + input as usize % 2]
    }
}
