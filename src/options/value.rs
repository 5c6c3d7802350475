//! Types of option values, and their readers.

use super::{Bounds, Declared, Named, OptionSpec, Spelling, find};
use crate::error::{Error, Result};
use serde_json::{Number, Value};

/// The kind of an option's values.
#[derive(Clone, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Flag,
    /// A whole number.
    Whole,
    /// A number of bytes; on the command line with a unit, such as `8GB`.
    Bytes,
    /// A number.
    Real,
    /// A positive whole number, or -1.
    GroupSize,
    /// One of these numbers.
    Numbers(&'static [u32]),
    /// One of some names.
    Names {
        /// The name of the enum.
        type_name: &'static str,
        /// The enum's help.
        about: &'static str,
        /// The names with their help.
        names: Vec<(&'static str, &'static str)>,
    },
    /// A text.
    Text,
    /// A list of values of a kind.
    List(Box<Kind>),
    /// Token ids.
    Tokens,
    /// A struct of options.
    Object {
        /// The name of the struct.
        type_name: &'static str,
        /// Its help.
        about: &'static str,
        /// Its options.
        options: Vec<OptionSpec>,
    },
    /// One or several texts.
    Texts,
    /// A location. The value is only whether one was given.
    Location,
    /// The rules of a recipe.
    Recipe,
}

/// The type of an option.
pub trait OptionValue: Sized {
    /// The kind of its values.
    fn kind() -> Kind;

    /// Reads a value.
    ///
    /// # Errors
    /// What was expected and what was found.
    fn read(value: &Value) -> Result<Self, String>;

    /// The value as JSON, if it can be shown as a default.
    fn show(&self) -> Option<Value>;

    /// The value as a number, if it is one.
    fn number(&self) -> Option<f64> {
        None
    }

    /// Whether a required value is present.
    fn is_given(&self) -> bool {
        true
    }

    /// Adds its description.
    fn describe(&self, declared: Declared, specs: &mut Vec<OptionSpec>) {
        specs.push(OptionSpec { declared, kind: Self::kind(), default: self.show() });
    }

    /// Adds its name.
    fn names(declared: Declared, names: &mut Vec<&'static str>) {
        names.push(declared.name);
    }

    /// Reads the value of this option.
    ///
    /// # Errors
    /// `invalid_argument`, naming the option.
    fn read_named(declared: Declared, value: &Value) -> Result<Self> {
        Self::read(value).map_err(|reason| refused(declared, Spelling::JavaScript, &reason))
    }

    /// Sets the option if `name` is its name.
    ///
    /// # Errors
    /// `invalid_argument`, naming the option.
    fn offer(&mut self, declared: Declared, name: &str, value: &Value) -> Result<bool> {
        if name != declared.name {
            return Ok(false);
        }
        *self = Self::read_named(declared, value)?;
        Ok(true)
    }

    /// Refuses a number out of bounds, and a missing required value.
    ///
    /// # Errors
    /// `invalid_argument`, naming the option.
    fn accept(&self, declared: Declared, spelling: Spelling) -> Result<()> {
        if declared.required && !self.is_given() {
            return Err(missing(declared, spelling));
        }
        match self.number() {
            Some(number) if declared.bounds != Bounds::NONE && !declared.bounds.contains(number) => {
                let reason = format!("expected a number{} but found {number}", declared.bounds);
                Err(refused(declared, spelling, &reason))
            }
            _ => Ok(()),
        }
    }
}

fn missing(declared: Declared, spelling: Spelling) -> Error {
    refused(declared, spelling, "it has to be given")
}

fn refused(declared: Declared, spelling: Spelling, reason: &str) -> Error {
    Error::invalid_argument(format!("`{}`: {reason}", spelling.of(declared.name)))
}

/// A text as shown in messages.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN: usize = 60;
    match text.char_indices().nth(SHOWN) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", &text[..end]),
    }
}

pub(super) fn found(expected: &str, value: &Value) -> String {
    match value {
        Value::String(text) => format!("expected {expected} but found {}", quoted(text)),
        Value::Array(_) => format!("expected {expected} but found a list"),
        Value::Object(_) => format!("expected {expected} but found an object"),
        other => format!("expected {expected} but found {other}"),
    }
}

impl OptionValue for bool {
    fn kind() -> Kind {
        Kind::Flag
    }

    fn read(value: &Value) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| found("true or false", value))
    }

    fn show(&self) -> Option<Value> {
        Some(Value::Bool(*self))
    }
}

/// A whole number, also when written with a fraction of zero.
fn whole(value: &Value) -> Result<u64, String> {
    // JavaScript's exact integers are below.
    const END: f64 = (1u64 << 53) as f64;
    let whole = value.as_u64().or_else(|| {
        let number = value.as_f64().filter(|number| number.fract() == 0.0 && (0.0..=END).contains(number));
        number.map(|number| number as u64)
    });
    whole.ok_or_else(|| found("a whole number of at least 0", value))
}

macro_rules! whole_numbers {
    ($($Type:ty),+) => { $(
        impl OptionValue for $Type {
            fn kind() -> Kind {
                Kind::Whole
            }

            fn read(value: &Value) -> Result<Self, String> {
                Self::try_from(whole(value)?).map_err(|_| found("a smaller number", value))
            }

            fn show(&self) -> Option<Value> {
                Some(Value::from(*self))
            }

            fn number(&self) -> Option<f64> {
                Some(*self as f64)
            }
        }
    )+ };
}
whole_numbers!(u32, u64, usize);

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl OptionValue for Bytes {
    fn kind() -> Kind {
        Kind::Bytes
    }

    fn read(value: &Value) -> Result<Self, String> {
        whole(value).map(Self)
    }

    fn show(&self) -> Option<Value> {
        Some(Value::from(self.0))
    }

    fn number(&self) -> Option<f64> {
        Some(self.0 as f64)
    }
}

/// A text, or several that are joined by a blank line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Texts(pub String);

impl OptionValue for Texts {
    fn kind() -> Kind {
        Kind::Texts
    }

    fn read(value: &Value) -> Result<Self, String> {
        match value {
            Value::String(text) => Ok(Self(text.clone())),
            several => {
                list(several, "a text or a list of texts", String::read).map(|texts| Self(texts.join("\n\n")))
            }
        }
    }

    fn show(&self) -> Option<Value> {
        None
    }

    fn is_given(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Whether a location was given. Only the edges know which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocationGiven(pub bool);

impl OptionValue for LocationGiven {
    fn kind() -> Kind {
        Kind::Location
    }

    fn read(value: &Value) -> Result<Self, String> {
        bool::read(value).map(Self)
    }

    fn show(&self) -> Option<Value> {
        None
    }
}

fn real(value: &Value) -> Result<f64, String> {
    value.as_f64().ok_or_else(|| found("a number", value))
}

impl OptionValue for f64 {
    fn kind() -> Kind {
        Kind::Real
    }

    fn read(value: &Value) -> Result<Self, String> {
        real(value)
    }

    fn show(&self) -> Option<Value> {
        Number::from_f64(*self).map(Value::Number)
    }

    fn number(&self) -> Option<f64> {
        Some(*self)
    }
}

impl OptionValue for f32 {
    fn kind() -> Kind {
        Kind::Real
    }

    fn read(value: &Value) -> Result<Self, String> {
        Ok(real(value)? as f32)
    }

    fn show(&self) -> Option<Value> {
        // The shortest decimal, such as 0.05, instead of the nearest 32-bit number.
        self.to_string().parse().ok().and_then(Number::from_f64).map(Value::Number)
    }

    fn number(&self) -> Option<f64> {
        Some((*self).into())
    }
}

impl OptionValue for String {
    fn kind() -> Kind {
        Kind::Text
    }

    fn read(value: &Value) -> Result<Self, String> {
        value.as_str().map(str::to_owned).ok_or_else(|| found("a text", value))
    }

    fn show(&self) -> Option<Value> {
        (!self.is_empty()).then(|| Value::from(self.as_str()))
    }

    fn is_given(&self) -> bool {
        !self.is_empty()
    }
}

fn list<T>(
    value: &Value,
    expected: &str,
    read: impl Fn(&Value) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    value.as_array().ok_or_else(|| found(expected, value))?.iter().map(read).collect()
}

impl OptionValue for Vec<String> {
    fn kind() -> Kind {
        Kind::List(Box::new(Kind::Text))
    }

    fn read(value: &Value) -> Result<Self, String> {
        list(value, "a list of texts", String::read)
    }

    fn show(&self) -> Option<Value> {
        (!self.is_empty()).then(|| Value::from(self.clone()))
    }

    fn is_given(&self) -> bool {
        !self.is_empty()
    }
}

impl OptionValue for Vec<usize> {
    fn kind() -> Kind {
        Kind::List(Box::new(Kind::Whole))
    }

    fn read(value: &Value) -> Result<Self, String> {
        list(value, "a list of numbers", usize::read)
    }

    fn show(&self) -> Option<Value> {
        (!self.is_empty()).then(|| Value::from(self.clone()))
    }
}

impl OptionValue for Vec<u32> {
    fn kind() -> Kind {
        Kind::Tokens
    }

    fn read(value: &Value) -> Result<Self, String> {
        list(value, "a list of token ids", u32::read)
    }

    fn show(&self) -> Option<Value> {
        None
    }
}

impl<T: Named> OptionValue for T {
    fn kind() -> Kind {
        let names = T::VALUES.iter().map(|(_, name, help)| (*name, *help)).collect();
        Kind::Names { type_name: T::TYPE, about: T::ABOUT, names }
    }

    fn read(value: &Value) -> Result<Self, String> {
        match value.as_str() {
            Some(name) => find(name),
            None => Err(found(&format!("one of {}", T::names().join(", ")), value)),
        }
    }

    fn show(&self) -> Option<Value> {
        T::VALUES.iter().find(|(value, _, _)| value == self).map(|(_, name, _)| Value::from(*name))
    }
}

impl<T: OptionValue> OptionValue for Option<T> {
    fn kind() -> Kind {
        T::kind()
    }

    fn read(value: &Value) -> Result<Self, String> {
        T::read(value).map(Some)
    }

    fn show(&self) -> Option<Value> {
        self.as_ref().and_then(T::show)
    }

    fn read_named(declared: Declared, value: &Value) -> Result<Self> {
        // Nested errors name the inner option.
        T::read_named(declared, value).map(Some)
    }

    fn accept(&self, declared: Declared, spelling: Spelling) -> Result<()> {
        match self {
            Some(given) => given.accept(declared, spelling),
            None if declared.required => Err(missing(declared, spelling)),
            None => Ok(()),
        }
    }
}
