//! The slots in which a walk keeps hidden states in scratch.

use crate::model::block::LinearInput;

/// The same samples, in one model or in the other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// Through the matrices that replace others.
    Quantized,
    /// Through the checkpoint's.
    Original,
}

/// The outputs that candidates are measured by.
pub(super) const PARENT: &str = "parent";

/// By stream: the residual streams of all samples, end to end; the same before a block with an even and with an odd number and
/// after a block's attention, where they are kept; and the activations of all samples at an input. Of these there are two that
/// alternate: one is written while the other is read.
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

/// Slots that a walk leaves in scratch.
pub fn slots() -> impl Iterator<Item = &'static str> {
    NAMES.as_flattened().iter().copied().chain([PARENT])
}

impl Stream {
    /// The residual streams before block `layer`, where those of the block before are `kept` beside them or not.
    pub(super) fn before(self, layer: usize, kept: bool) -> &'static str {
        NAMES[self as usize][if kept { 1 + layer % 2 } else { 0 }]
    }

    /// The residual streams after a block's attention.
    pub(super) fn inside(self, kept: bool) -> &'static str {
        NAMES[self as usize][if kept { 3 } else { 0 }]
    }

    /// The activations at an input.
    pub(super) fn activations(self, input: LinearInput) -> &'static str {
        NAMES[self as usize][4 + input as usize % 2]
    }
}
