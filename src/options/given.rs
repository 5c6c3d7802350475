//! Values that a setter accepts: the option's type, or something that converts to it.

use super::{Bytes, Texts};

/// A value for an option of type `T`: `T`; `T` for `Option<T>`; a text or a number if the option wraps one.
pub trait Given<T> {
    /// The option's value.
    fn given(self) -> T;
}

impl<T> Given<T> for T {
    fn given(self) -> T {
        self
    }
}

impl<T> Given<Option<T>> for T {
    fn given(self) -> Option<T> {
        Some(self)
    }
}

impl Given<String> for &str {
    fn given(self) -> String {
        self.to_owned()
    }
}

impl Given<Option<String>> for &str {
    fn given(self) -> Option<String> {
        Some(self.to_owned())
    }
}

impl Given<Texts> for &str {
    fn given(self) -> Texts {
        Texts(self.to_owned())
    }
}

impl Given<Texts> for String {
    fn given(self) -> Texts {
        Texts(self)
    }
}

impl Given<Option<Bytes>> for u64 {
    fn given(self) -> Option<Bytes> {
        Some(Bytes(self))
    }
}

impl<const N: usize> Given<Vec<String>> for [&str; N] {
    fn given(self) -> Vec<String> {
        self.map(str::to_owned).into()
    }
}
