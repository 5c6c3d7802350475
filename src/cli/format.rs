//! `--format`: the layouts that can be written. Floor 9.

use crate::layout::{GptqZeros, TargetLayout};
use clap::ValueEnum;
use clap::builder::PossibleValue;

/// `--format` of `convert` and `quantize`.
#[derive(Clone, Copy)]
pub enum OutputFormatArg {
    /// Packed weights in a folder.
    Packed(FormatArg),
    /// One file.
    Gguf,
}

impl ValueEnum for OutputFormatArg {
    fn value_variants<'a>() -> &'a [Self] {
        const {
            &[
                Self::Packed(FormatArg::CompressedTensors),
                Self::Packed(FormatArg::Gptq),
                Self::Packed(FormatArg::GptqV2),
                Self::Packed(FormatArg::Awq),
                Self::Packed(FormatArg::Bitnet),
                Self::Gguf,
            ]
        }
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Packed(format) => format.to_possible_value(),
            Self::Gguf => Some(PossibleValue::new("gguf").help("One file for llama.cpp, of any checkpoint")),
        }
    }
}

/// Layouts of packed weights in a folder.
#[derive(Clone, Copy, ValueEnum)]
pub enum FormatArg {
    CompressedTensors,
    /// As version 1, which every tool reads
    Gptq,
    /// Zero points as they are
    GptqV2,
    Awq,
    Bitnet,
}

impl From<FormatArg> for TargetLayout {
    fn from(arg: FormatArg) -> Self {
        match arg {
            FormatArg::CompressedTensors => Self::CompressedTensors,
            FormatArg::Gptq => Self::Gptq(GptqZeros::V1),
            FormatArg::GptqV2 => Self::Gptq(GptqZeros::V2),
            FormatArg::Awq => Self::Awq,
            FormatArg::Bitnet => Self::BitNet,
        }
    }
}
