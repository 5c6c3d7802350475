//! Names of quantization methods.

use crate::options::named;

named! {
    /// Quantization methods.
    pub enum Method {
        /// Round to nearest
        Rtn = "rtn",
        /// GPTQ: calibrated rounding, column by column, with error compensation
        Gptq = "gptq",
        /// AWQ: calibrated scaling of columns with large inputs
        Awq = "awq",
        /// -1, 0 and 1, as in BitNet b1.58
        Ternary = "ternary",
    }
}

impl Method {
    /// Whether it needs calibration samples.
    pub fn is_calibrated(self) -> bool {
        matches!(self, Self::Gptq | Self::Awq)
    }
}
