//! Declarations of options: name, help, type, default and bounds, written once.
//!
//! `named!` declares an enum whose values have one name each, in options, records and reports.
//! `options!` declares a struct of options. The struct with its default, a setter for each field, the reader of
//! JavaScript objects, command-line arguments, the npm package's types and JSON Schemas, and the check of bounds are
//! all derived from this declaration. A field is `group_size` in Rust and in records, `groupSize` in JavaScript, and
//! `--group-size` on the command line.
//!
//! The options of each command are in [`request`](crate::request) and in the modules that use them.

mod bounds;
mod given;
mod named;
mod nested;
mod value;

pub use bounds::Bounds;
pub use given::Given;
pub use named::Named;
pub(crate) use named::{find, named};
pub(crate) use nested::nested;
pub(crate) use options_macro as options;
pub use value::{Bytes, Kind, LocationGiven, OptionValue, Texts};

use crate::error::{Error, Result};
use serde_json::Value;

/// The command-line form of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `--group-size N`
    Named,
    /// A flag with this name and help that sets `false`.
    Not(&'static str, &'static str),
    /// An argument with another name.
    As(&'static str),
    /// Another argument provides the value, usually as a file, or the command derives it.
    By(&'static str),
    /// The field is a struct of options, which are flattened into this one.
    Group,
}

/// The declaration of an option, besides type and default.
#[derive(Clone, Copy, Debug)]
pub struct Declared {
    /// The field's name.
    pub name: &'static str,
    /// The help. Empty in the npm package's modules, which show no help.
    pub help: &'static str,
    /// Its command-line form.
    pub form: Form,
    /// Its bounds, for numbers.
    pub bounds: Bounds,
    /// Whether it is required.
    pub required: bool,
}

/// The description of one option.
#[derive(Clone, Debug)]
pub struct OptionSpec {
    /// The declaration.
    pub declared: Declared,
    /// The kind of its values.
    pub kind: Kind,
    /// The default. `None` if it depends on other options.
    pub default: Option<Value>,
}

/// A struct of options.
pub trait Options: Default {
    /// The help of the struct.
    const ABOUT: &'static str;

    /// All options in declaration order, with flattened groups.
    fn specs() -> Vec<OptionSpec>;

    /// All names, without those inside nested options.
    fn names(names: &mut Vec<&'static str>);

    /// Sets the option `name`. Returns `false` if there is no such option.
    ///
    /// # Errors
    /// `invalid_argument`, naming the option.
    fn take(&mut self, name: &str, value: &Value) -> Result<bool>;

    /// Refuses numbers out of bounds and missing required options, for callers that set the fields
    /// directly.
    ///
    /// # Errors
    /// `invalid_argument`, naming the option.
    fn check(&self) -> Result<()> {
        self.check_as(Spelling::Rust)
    }

    /// As [`check`](Self::check), with names in the caller's spelling.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    fn check_as(&self, spelling: Spelling) -> Result<()>;
}

/// The spelling of option names in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling {
    /// `group_size`
    Rust,
    /// `groupSize`
    JavaScript,
}

impl Spelling {
    /// A name in this spelling.
    pub fn of(self, name: &str) -> String {
        match self {
            Self::Rust => name.to_owned(),
            Self::JavaScript => camel_case(name),
        }
    }
}

/// Reads an object of options in JavaScript's spelling. An unknown name is an error, so that a misspelled option is not
/// ignored.
///
/// # Errors
/// `invalid_argument`, naming the option.
pub fn read<T: Options>(object: &Value) -> Result<T> {
    let mut options = T::default();
    let Some(object) = object.as_object() else {
        return Err(Error::invalid_argument(value::found("an object of options", object)));
    };
    let mut names = Vec::new();
    T::names(&mut names);
    let names: Vec<(String, &str)> = names.into_iter().map(|name| (camel_case(name), name)).collect();
    for (key, value) in object {
        let Some((_, name)) = names.iter().find(|(known, _)| known == key) else {
            let known: Vec<&str> = names.iter().map(|(known, _)| known.as_str()).collect();
            return Err(Error::invalid_argument(format!(
                "unknown field {}, expected one of {}",
                value::quoted(key),
                known.join(", ")
            )));
        };
        // Null means absent.
        if !value.is_null() {
            options.take(name, value)?;
        }
    }
    options.check_as(Spelling::JavaScript)?;
    Ok(options)
}

/// JavaScript's spelling: `group_size` becomes `groupSize`.
pub fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at(word.len().min(1));
        camel.push_str(&first.to_ascii_uppercase());
        camel.push_str(rest);
    }
    camel
}

/// Objects whose keys are data instead of field names: options in records, and number formats.
#[cfg(any(test, all(target_arch = "wasm32", feature = "bindings")))]
const DATA: [&str; 2] = ["parameters", "linear_formats"];

/// Renames the keys of an indented JSON text to JavaScript's spelling. It works on text, which keeps numbers exact.
#[cfg(any(test, all(target_arch = "wasm32", feature = "bindings")))]
pub(crate) fn camel_case_keys(indented: &str) -> String {
    let mut text = String::with_capacity(indented.len());
    // The indentation of the current object whose keys are data.
    let mut data: Option<usize> = None;
    for line in indented.lines() {
        let inside = line.trim_start();
        let indent = line.len() - inside.len();
        if data.is_some_and(|outer| indent <= outer) {
            data = None;
        }
        // A field's name has no escapes, unlike text that looks like one.
        match inside.strip_prefix('"').and_then(|rest| rest.split_once("\":")) {
            Some((name, value)) if data.is_none() && !name.contains(['"', '\\']) => {
                text.extend([&line[..indent], "\"", &camel_case(name), "\":", value]);
                if DATA.contains(&name) {
                    data = Some(indent);
                }
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// Declares a struct of options.
///
/// ```text
/// options! {
///     /// How text is generated.
///     pub struct GenerateOptions {
///         /// At most this many new tokens
///         pub max_tokens: usize = 100;
///         /// Choose among the likeliest tokens that together reach this probability
///         pub top_p: f32 = 1.0, within Bounds::above(0.0).up_to(1.0);
///         /// Texts to continue
///         #[form(As("prompt"))]
///         pub prompts: Vec<String> = Vec::new(), required = true;
///     }
/// }
/// ```
macro_rules! options_macro {
    (
        $(#[doc = $about:literal])+
        $(#[derive($Derive:ident)])?
        $visible:vis struct $Options:ident {
            $(
                $(#[doc = $help:literal])+
                $(#[form($($form:tt)+)])?
                pub $name:ident : $Type:ty = $default:expr $(, within $bounds:expr)? $(, required = $required:literal)?;
            )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq $(, $Derive)?)]
        #[non_exhaustive]
        $visible struct $Options {
            $( $(#[doc = $help])+ pub $name: $Type, )+
        }

        #[allow(dead_code, reason = "not every setter is used")]
        impl $Options {
            $(
                $(#[doc = $help])+
                #[must_use]
                pub fn $name(mut self, $name: impl $crate::options::Given<$Type>) -> Self {
                    self.$name = $name.given();
                    self
                }
            )+
        }

        impl Default for $Options {
            fn default() -> Self {
                Self { $( $name: $default, )+ }
            }
        }

        const _: () = {
        /// The declarations of the options. Kind and default come from the field.
        struct Fixed;

        impl Fixed {
            $(
                #[allow(non_upper_case_globals, reason = "by the field's name")]
                const $name: $crate::options::Declared = $crate::options::Declared {
                    name: stringify!($name),
                    help: if cfg!(any(feature = "cli", test)) { concat!($($help),+) } else { "" },
                    form: $crate::options::options_macro!(@form $($($form)+)?),
                    bounds: $crate::options::options_macro!(@bounds $($bounds)?),
                    required: $crate::options::options_macro!(@required $($required)?),
                };
            )+
        }

        impl $crate::options::Options for $Options {
            const ABOUT: &'static str =
                if cfg!(any(feature = "cli", test)) { concat!($($about),+) } else { "" };

            fn specs() -> Vec<$crate::options::OptionSpec> {
                let usual = Self::default();
                let mut specs = Vec::new();
                $( $crate::options::OptionValue::describe(&usual.$name, Fixed::$name, &mut specs); )+
                specs
            }

            fn names(names: &mut Vec<&'static str>) {
                $( <$Type as $crate::options::OptionValue>::names(Fixed::$name, names); )+
            }

            fn take(&mut self, name: &str, value: &serde_json::Value) -> $crate::error::Result<bool> {
                Ok(false $(|| $crate::options::OptionValue::offer(&mut self.$name, Fixed::$name, name, value)?)+)
            }

            fn check_as(&self, spelling: $crate::options::Spelling) -> $crate::error::Result<()> {
                $( $crate::options::OptionValue::accept(&self.$name, Fixed::$name, spelling)?; )+
                Ok(())
            }
        }

        };

        $crate::options::nested!($Options);
    };
    (@form) => { $crate::options::Form::Named };
    (@form $($form:tt)+) => { $crate::options::Form::$($form)+ };
    (@bounds) => { $crate::options::Bounds::NONE };
    (@bounds $bounds:expr) => { $bounds };
    (@required) => { false };
    (@required $required:literal) => { $required };
}
pub(crate) use options_macro;

#[cfg(test)]
mod tests;
