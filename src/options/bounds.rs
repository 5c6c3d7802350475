//! What numbers an option may be.

use std::fmt;

/// An interval, each end in it or not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// The lower end, and whether the interval has it.
    pub low: Option<(f64, bool)>,
    /// The upper end, and whether the interval has it.
    pub high: Option<(f64, bool)>,
}

impl Bounds {
    /// Any number.
    pub const NONE: Self = Self { low: None, high: None };

    /// This number and those above it.
    pub const fn from(low: f64) -> Self {
        Self { low: Some((low, true)), high: None }
    }

    /// The numbers above this one.
    pub const fn above(low: f64) -> Self {
        Self { low: Some((low, false)), high: None }
    }

    /// No more than this.
    pub const fn up_to(self, high: f64) -> Self {
        Self { high: Some((high, true)), ..self }
    }

    /// Less than this.
    pub const fn below(self, high: f64) -> Self {
        Self { high: Some((high, false)), ..self }
    }

    /// Whether a number is in the interval; one that is not finite is in none.
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
