//! Options, each written once: its name, what it is for, its type, its default and its bounds.
//!
//! `named!` declares an enum whose values have one name each, in options, records and reports.
//! `options!` declares a struct of options. From that one declaration come the struct and its default, the
//! methods that set one option each, the reading of an object of JavaScript's, the arguments of the command line, the types
//! and JSON Schemas of the npm package, and the check of the bounds. A field is spelled `group_size` in Rust and in records, `groupSize` in JavaScript,
//! `--group-size` on the command line.
//!
//! Not here: which options a command has ([`request`](crate::request), and the floors whose options they are).

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

/// How an option is given on the command line, where not by an argument of its name and a value of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `--group-size N`
    Named,
    /// A flag of this name, which says `false`, and its help.
    Not(&'static str, &'static str),
    /// An argument of another name.
    As(&'static str),
    /// The command reads it from what another argument names: files, mostly. Or it depends on how the command is used.
    By(&'static str),
    /// The field is a struct of options, which stand beside the others.
    Group,
}

/// What the declaration says of an option beside its type and its default.
#[derive(Clone, Copy, Debug)]
pub struct Declared {
    /// As the field.
    pub name: &'static str,
    /// What it is for. Empty in the modules of the npm package, which show no help.
    pub help: &'static str,
    /// How the command line has it.
    pub form: Form,
    /// What numbers it may be.
    pub bounds: Bounds,
    /// Whether it has to be given.
    pub required: bool,
}

/// One option, described.
#[derive(Clone, Debug)]
pub struct OptionSpec {
    /// As it is declared.
    pub declared: Declared,
    /// What its values are.
    pub kind: Kind,
    /// What it is where it is not given; `None` where that depends on something else.
    pub default: Option<Value>,
}

/// A struct of options.
pub trait Options: Default {
    /// What they are the options of.
    const ABOUT: &'static str;

    /// Every option, in the order of the declaration; those of a group in its place.
    fn specs() -> Vec<OptionSpec>;

    /// Every name; nested options are inside their own.
    fn names(names: &mut Vec<&'static str>);

    /// Takes the value of the option `name`; `false` where there is none of that name.
    ///
    /// # Errors
    /// `invalid_argument`, naming the option.
    fn take(&mut self, name: &str, value: &Value) -> Result<bool>;

    /// Refuses numbers that are out of their bounds, and what has to be given and is not: of callers who set the fields
    /// themselves.
    ///
    /// # Errors
    /// `invalid_argument`, naming the option.
    fn check(&self) -> Result<()> {
        self.check_as(Spelling::Rust)
    }

    /// As [`check`](Self::check), with names as the caller spells them.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    fn check_as(&self, spelling: Spelling) -> Result<()>;
}

/// How messages spell the names of options.
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

/// Reads an object of options in JavaScript's spelling. A name that is not known is an error: a misspelled option must not be
/// taken for one that was left out.
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
        // Null is as good as left out.
        if !value.is_null() {
            options.take(name, value)?;
        }
    }
    options.check_as(Spelling::JavaScript)?;
    Ok(options)
}

/// `group_size` as JavaScript has it: `groupSize`.
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

/// Objects whose names are data, and not those of fields: what a record keeps of options, and number formats.
#[cfg(any(test, all(target_arch = "wasm32", feature = "bindings")))]
const DATA: [&str; 2] = ["parameters", "linear_formats"];

/// An indented JSON text with the names of a result as JavaScript has them. As a text, because numbers stay what they are then.
#[cfg(any(test, all(target_arch = "wasm32", feature = "bindings")))]
pub(crate) fn camel_case_keys(indented: &str) -> String {
    let mut text = String::with_capacity(indented.len());
    // How far the object is indented whose names are data, while its lines come.
    let mut data: Option<usize> = None;
    for line in indented.lines() {
        let inside = line.trim_start();
        let indent = line.len() - inside.len();
        if data.is_some_and(|outer| indent <= outer) {
            data = None;
        }
        // A field's name has nothing to escape; what looks like one in a text has.
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

        #[allow(dead_code, reason = "each option can be set, whether somebody does or not")]
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
        /// What is fixed of each option; its kind and its default come from the field.
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
