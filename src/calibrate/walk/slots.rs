//! The names under which a walk keeps hidden states in scratch. Floor 7.

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

/// Slots that a walk leaves in scratch.
pub const SLOTS: [&str; 13] = [
    QUANTIZED.residual,
    QUANTIZED.residual_between[0],
    QUANTIZED.residual_between[1],
    QUANTIZED.residual_inside,
    QUANTIZED.activations[0],
    QUANTIZED.activations[1],
    ORIGINAL.residual,
    ORIGINAL.residual_between[0],
    ORIGINAL.residual_between[1],
    ORIGINAL.residual_inside,
    ORIGINAL.activations[0],
    ORIGINAL.activations[1],
    PARENT,
];

/// The slots of one stream.
pub(super) struct Slots {
    /// The residual streams of all samples, end to end.
    pub(super) residual: &'static str,
    /// The same before a block with an even and with an odd number, where they are kept.
    pub(super) residual_between: [&'static str; 2],
    /// The same after a block's attention, where the others are kept.
    pub(super) residual_inside: &'static str,
    /// The activations of all samples at an input. Two that alternate: one is written while the other is read.
    pub(super) activations: [&'static str; 2],
}

const QUANTIZED: Slots = Slots {
    residual: "residual",
    residual_between: ["residual-0", "residual-1"],
    residual_inside: "residual-inside",
    activations: ["activations-0", "activations-1"],
};

const ORIGINAL: Slots = Slots {
    residual: "original-residual",
    residual_between: ["original-residual-0", "original-residual-1"],
    residual_inside: "original-residual-inside",
    activations: ["original-activations-0", "original-activations-1"],
};

impl Stream {
    pub(super) fn slots(self) -> &'static Slots {
        match self {
            Self::Quantized => &QUANTIZED,
            Self::Original => &ORIGINAL,
        }
    }
}

/// The slot of the activations at an input.
pub(super) fn activations(input: LinearInput, stream: Stream) -> &'static str {
    let turn = match input {
        LinearInput::Qkv | LinearInput::GateUp => 0,
        LinearInput::O | LinearInput::Down => 1,
    };
    stream.slots().activations[turn]
}
