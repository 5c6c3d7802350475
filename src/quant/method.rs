//! The methods that find codes.

use crate::options::named;

named! {
    /// How codes are found.
    pub enum Method {
        /// Round to nearest
        Rtn = "rtn",
        /// Learn from calibration texts which way to round, column by column
        Gptq = "gptq",
        /// Learn from calibration texts which columns to round more finely
        Awq = "awq",
        /// -1, 0 and 1 as BitNet b1.58 makes them
        Ternary = "ternary",
    }
}

impl Method {
    /// Whether it needs calibration samples.
    pub fn is_calibrated(self) -> bool {
        matches!(self, Self::Gptq | Self::Awq)
    }
}
