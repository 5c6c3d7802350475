//! Every option is on the command line and in JavaScript.

use crate::generate::GenerateOptions;
use crate::layout::OpenOptions;
use crate::options::{Form, Kind, OptionSpec, Options};
use crate::request::{
    AutoRequest, CompareRequest, ConvertRequest, DequantizeRequest, LoadRequest, PerplexityRequest,
    PlanRequest, QuantizeRequest, ValidateRequest,
};
use std::collections::BTreeSet;

/// Arguments that are not options of a request, each with its reason.
const OF_THE_COMMAND_LINE: &[(&str, &str)] = &[
    ("checkpoint", "a handle in JavaScript"),
    ("checkpoints", "handles in JavaScript"),
    ("a", "a handle in JavaScript"),
    ("b", "a handle in JavaScript"),
    ("original", "a handle in JavaScript"),
    ("quantized", "a handle in JavaScript"),
    ("output", "the target in JavaScript"),
    ("params", "the argument of `plan` in JavaScript"),
    ("prompt", "the argument of `generate` in JavaScript"),
    ("chat", "a method of its own in JavaScript"),
    ("tokenizer", "given where a checkpoint is opened in JavaScript"),
    ("json", "how the terminal is used"),
    ("threads", "a page decides how many workers it has"),
    ("metrics", "a file of figures"),
    ("help", "clap's own"),
    ("version", "clap's own"),
    ("scratch", "where files of this run are"),
    ("calibration_field", "how files are read"),
    ("desc_act", "another name of an option"),
    ("shuffle", "another name of an option"),
    ("also_dequantized", "two calls in JavaScript"),
    ("for_training", "two calls in JavaScript"),
    ("training_minutes", "JavaScript cannot train"),
];

/// The commands and their requests.
fn commands() -> Vec<(&'static str, Vec<Vec<OptionSpec>>)> {
    vec![
        ("quantize", vec![QuantizeRequest::specs()]),
        ("dequantize", vec![DequantizeRequest::specs()]),
        ("convert", vec![ConvertRequest::specs()]),
        ("generate", vec![GenerateOptions::specs(), LoadRequest::specs()]),
        ("perplexity", vec![PerplexityRequest::specs(), LoadRequest::specs()]),
        ("validate", vec![ValidateRequest::specs()]),
        ("auto", vec![AutoRequest::specs()]),
        ("compare", vec![CompareRequest::specs()]),
        ("plan", vec![PlanRequest::specs()]),
    ]
}

/// The arguments of options: by the option's name, or the name of the argument that provides it.
fn expected(specs: &[OptionSpec], arguments: &mut BTreeSet<String>) {
    for spec in specs {
        match (spec.declared.form, &spec.kind) {
            (form, Kind::Object { options, .. }) => {
                if let Form::By(argument) = form {
                    arguments.insert(argument.replace('-', "_"));
                }
                expected(options, arguments);
            }
            (Form::By(argument), _) => {
                arguments.insert(argument.replace('-', "_"));
            }
            _ => {
                arguments.insert(spec.declared.name.to_owned());
            }
        }
    }
}

#[test]
fn no_option_is_in_one_place_and_not_in_the_other() {
    let cli = super::command();
    for (name, requests) in commands() {
        let command = cli.find_subcommand(name).unwrap_or_else(|| panic!("no command {name}"));
        let mut options = BTreeSet::new();
        requests.iter().for_each(|specs| expected(specs, &mut options));
        OpenOptions::specs().iter().for_each(|spec| {
            options.remove(spec.declared.name);
        });
        let found: BTreeSet<String> =
            command.get_arguments().map(|argument| argument.get_id().as_str().to_owned()).collect();
        let missing: Vec<&String> =
            options.iter().filter(|option| !found.contains(*option) && *option != "json").collect();
        assert!(missing.is_empty(), "`{name}` has no argument for {missing:?}");
        let other: Vec<&String> = found
            .iter()
            .filter(|id| !options.contains(*id))
            .filter(|id| OF_THE_COMMAND_LINE.iter().all(|(known, _)| known != id))
            .collect();
        assert!(other.is_empty(), "JavaScript has no option for {other:?} of `{name}`");
    }
}
