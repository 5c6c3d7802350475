//! Converts declared options to clap arguments, and clap's matches to options.

use crate::options::{Bounds, Form, Kind, OptionSpec, Options, camel_case};
use crate::plan::parse_bytes;
use clap::builder::PossibleValue;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use serde_json::{Map, Value};

/// A struct of options as arguments of a command. Options that the command reads from elsewhere are left to it.
#[derive(Clone, Debug, Default)]
pub struct OptionArgs<T>(pub T);

impl<T: Options> clap::Args for OptionArgs<T> {
    fn augment_args(command: Command) -> Command {
        arguments(T::specs()).into_iter().fold(command, Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<T: Options> FromArgMatches for OptionArgs<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut options = T::default();
        let given = given(&T::specs(), matches);
        given
            .iter()
            .try_for_each(|(name, value)| options.take(name, value).map(drop))
            .map_err(|error| clap::Error::raw(ErrorKind::ValueValidation, format!("{error}\n")))?;
        Ok(Self(options))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Options that every command has, before or after its name.
#[derive(Clone, Debug, Default)]
pub struct GlobalArgs<T>(pub OptionArgs<T>);

impl<T: Options> clap::Args for GlobalArgs<T> {
    fn augment_args(command: Command) -> Command {
        arguments(T::specs()).into_iter().map(|argument| argument.global(true)).fold(command, Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<T: Options> FromArgMatches for GlobalArgs<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        OptionArgs::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

/// The arguments of options. Nested options become arguments at the same level.
pub fn arguments(specs: Vec<OptionSpec>) -> Vec<Arg> {
    let mut arguments = Vec::new();
    for spec in specs {
        match (spec.declared.form, &spec.kind) {
            (Form::By(_), _) => {}
            (_, Kind::Object { options, .. }) => arguments.extend(self::arguments(options.clone())),
            _ => arguments.push(argument(&spec)),
        }
    }
    arguments
}

/// Argument name of an option: `group_size` becomes `group-size`.
pub fn kebab_case(name: &str) -> String {
    name.replace('_', "-")
}

fn argument(spec: &OptionSpec) -> Arg {
    let declared = spec.declared;
    let long = match declared.form {
        Form::Not(name, _) | Form::As(name) => name.to_owned(),
        Form::Named | Form::By(_) | Form::Group => kebab_case(declared.name),
    };
    let arg = Arg::new(declared.name).long(long).help(declared.help.trim()).required(declared.required);
    let arg = match (declared.form, &spec.kind) {
        (Form::Not(_, help), _) => return arg.help(help).action(ArgAction::SetTrue),
        (_, Kind::Flag) => return arg.action(ArgAction::SetTrue),
        (_, Kind::List(_)) if declared.form == Form::Named && is_number(&spec.kind) => {
            arg.num_args(1..).action(ArgAction::Append)
        }
        (_, Kind::List(_)) => arg.action(ArgAction::Append),
        _ => arg,
    };
    let arg = arg.value_name(value_name(&spec.kind)).allow_negative_numbers(is_number(&spec.kind));
    let arg = match element(&spec.kind) {
        Kind::Names { names, .. } => {
            let values: Vec<PossibleValue> =
                names.iter().map(|(name, help)| PossibleValue::new(*name).help(help.trim())).collect();
            arg.value_parser(values)
        }
        Kind::Numbers(numbers) => {
            let values: Vec<PossibleValue> =
                numbers.iter().map(|number| PossibleValue::new(number.to_string())).collect();
            arg.value_parser(values)
        }
        kind => {
            let (kind, bounds) = (kind.clone(), declared.bounds);
            arg.value_parser(move |text: &str| value(&kind, bounds, text).map(|_| text.to_owned()))
        }
    };
    match &spec.default {
        None => arg,
        Some(Value::Array(values)) => arg.default_values(values.iter().map(shown)),
        Some(value) => arg.default_value(shown(value)),
    }
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The parser of one value.
fn element(kind: &Kind) -> &Kind {
    match kind {
        Kind::List(element) => element,
        other => other,
    }
}

fn is_number(kind: &Kind) -> bool {
    matches!(element(kind), Kind::Whole | Kind::Real | Kind::GroupSize | Kind::Numbers(_))
}

fn value_name(kind: &Kind) -> &'static str {
    match element(kind) {
        Kind::Whole | Kind::GroupSize => "N",
        Kind::Real => "X",
        Kind::Bytes => "BYTES",
        Kind::Numbers(_) => "BITS",
        Kind::Names { .. } => "NAME",
        _ => "TEXT",
    }
}

/// Converts a command-line text to a value.
fn value(kind: &Kind, bounds: Bounds, text: &str) -> Result<Value, String> {
    let number = |what: &str| {
        let number: f64 = text.parse().map_err(|_| format!("expected {what}"))?;
        if bounds != Bounds::NONE && !bounds.contains(number) {
            return Err(format!("expected {what}{bounds}"));
        }
        serde_json::Number::from_f64(number)
            .map(Value::Number)
            .ok_or_else(|| format!("expected {what} that is finite"))
    };
    match kind {
        Kind::Bytes => parse_bytes(text).map(Value::from).map_err(|error| error.message().to_owned()),
        Kind::Whole | Kind::Numbers(_) => {
            let whole: u64 = text.parse().map_err(|_| "expected a whole number of at least 0".to_owned())?;
            number("a whole number").map(|_| Value::from(whole))
        }
        Kind::GroupSize => match text.parse() {
            Ok(size @ (-1 | 1i64..)) => Ok(Value::from(size)),
            _ => Err("expected a positive whole number, or -1".to_owned()),
        },
        Kind::Real => number("a number"),
        _ => Ok(Value::from(text)),
    }
}

/// The given options by name. Nested options use JavaScript's names, as the reader expects.
fn given(specs: &[OptionSpec], matches: &ArgMatches) -> Vec<(&'static str, Value)> {
    let mut given = Vec::new();
    for spec in specs {
        let name = spec.declared.name;
        match (spec.declared.form, &spec.kind) {
            (Form::By(_), _) => {}
            (_, Kind::Object { options, .. }) => {
                let inside = self::given(options, matches);
                let object: Map<String, Value> =
                    inside.into_iter().map(|(name, value)| (camel_case(name), value)).collect();
                if !object.is_empty() {
                    given.push((name, Value::Object(object)));
                }
            }
            _ if matches.value_source(name) != Some(ValueSource::CommandLine) => {}
            (Form::Not(..), _) => given.push((name, Value::Bool(false))),
            (_, Kind::Flag) => given.push((name, Value::Bool(true))),
            (_, kind) => {
                let texts = matches.get_many::<String>(name).into_iter().flatten();
                // Each was parsed before.
                let mut values = texts.filter_map(|text| value(element(kind), Bounds::NONE, text).ok());
                let value = match kind {
                    Kind::List(_) => Some(values.collect()),
                    _ => values.next(),
                };
                given.extend(value.map(|value| (name, value)));
            }
        }
    }
    given
}
