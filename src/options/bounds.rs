//! Bounds of numeric options.

use std::fmt;

/// An interval with open or closed ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// The lower end, and whether it is included.
    pub low: Option<(f64, bool)>,
    /// The upper end, and whether it is included.
    pub high: Option<(f64, bool)>,
}

impl Bounds {
    /// Any number.
    pub const NONE: Self = Self { low: None, high: None };

    /// At least this number.
    pub const fn from(low: f64) -> Self {
        Self { low: Some((low, true)), high: None }
    }

    /// Greater than this number.
    pub const fn above(low: f64) -> Self {
        Self { low: Some((low, false)), high: None }
    }

    /// At most this number.
    pub const fn up_to(self, high: f64) -> Self {
        Self { high: Some((high, true)), ..self }
    }

    /// Less than this number.
    pub const fn below(self, high: f64) -> Self {
        Self { high: Some((high, false)), ..self }
    }

    /// Whether a finite number is in the interval.
    pub fn contains(&self, value: f64) -> bool {
        let above = self.low.is_none_or(|(low, with)| value > low || with && value == low);
        let below = self.high.is_none_or(|(high, with)| value < high || with && value == high);
        value.is_finite() && above && below
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.low {
            Some((low, true)) => write!(f, " of at least {low}")?,
            Some((low, false)) => write!(f, " above {low}")?,
            None => {}
        }
        let joined = if self.low.is_some() { " and" } else { "" };
        match self.high {
            Some((high, true)) => write!(f, "{joined} at most {high}"),
            Some((high, false)) => write!(f, "{joined} below {high}"),
            None => Ok(()),
        }
    }
}
