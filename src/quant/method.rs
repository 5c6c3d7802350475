//! The names of the methods that find codes. Floor 2.

use serde::{Deserialize, Serialize};

/// How codes are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Round to nearest.
    Rtn,
    /// Rounded column by column, each making up for the errors before it; needs calibration samples.
    Gptq,
    /// Columns that meet large inputs are made larger before rounding; needs calibration samples.
    Awq,
    /// BitNet b1.58: -1, 0 and 1.
    Ternary,
}

impl Method {
    /// The spelling in records and options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rtn => "rtn",
            Self::Gptq => "gptq",
            Self::Awq => "awq",
            Self::Ternary => "ternary",
        }
    }

    /// Whether it needs calibration samples.
    pub fn is_calibrated(self) -> bool {
        matches!(self, Self::Gptq | Self::Awq)
    }
}
