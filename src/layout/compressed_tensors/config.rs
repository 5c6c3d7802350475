//! Parses a compressed-tensors `quantization_config`, reduced to what its groups mean for the weights.

use super::targets::Targets;
use crate::error::{Context, Error, Result};
use crate::format::json;
use crate::format::{clipped, quoted};
use crate::layout::keys;
use crate::quant::{Activations, Bits, Granularity, Scheme};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::HashMap;

/// The content of `quantization_config` for a compressed-tensors checkpoint.
#[derive(Debug)]
pub struct Config {
    groups: Vec<Group>,
    targets: Targets,
    /// The values of `weight_shape` tensors, by name.
    shapes: HashMap<String, [i64; 2]>,
}

/// The settings of all modules of a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    pub(super) scheme: Scheme,
    pub(super) activations: Activations,
    /// `None`: the config does not specify it, so the tensors decide.
    pub(super) spelling: Option<Spelling>,
}

/// How codes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// `pack-quantized`
    Packed,
    /// `int-quantized`, `naive-quantized`
    Bytes,
}

/// Keys of the config that are read here, or that do not affect the weights.
pub(in crate::layout) const KNOWN_KEYS: [&str; 11] = [
    "config_groups",
    "format",
    "ignore",
    "kv_cache_scheme",
    "sparsity_config",
    "transform_config",
    "quantization_status",
    "global_compression_ratio",
    "run_compressed",
    // How a runtime multiplies.
    "dequantize",
    "use_optimized_inference",
];
/// Keys of a group.
const GROUP_KEYS: [&str; 5] = ["targets", "weights", "input_activations", "output_activations", "format"];
/// Keys of weights and activations. Observers only determined the scales, and the tensors show their own types.
const ARGS_KEYS: [&str; 12] = [
    "num_bits",
    "type",
    "symmetric",
    "strategy",
    "group_size",
    "actorder",
    "dynamic",
    "observer",
    "observer_kwargs",
    "scale_dtype",
    "zp_dtype",
    "block_structure",
];

#[derive(Deserialize)]
struct RawConfig {
    config_groups: Option<Map<String, Value>>,
    format: Option<String>,
    ignore: Option<Vec<String>>,
    kv_cache_scheme: Option<Value>,
    sparsity_config: Option<Value>,
    transform_config: Option<Value>,
}

#[derive(Deserialize)]
struct RawGroup {
    targets: Vec<String>,
    weights: Option<RawArgs>,
    input_activations: Option<RawArgs>,
    output_activations: Option<Value>,
    format: Option<String>,
}

#[derive(Deserialize)]
struct RawArgs {
    num_bits: u32,
    #[serde(rename = "type")]
    number_type: Option<String>,
    symmetric: Option<bool>,
    strategy: Option<String>,
    group_size: Option<i64>,
    actorder: Option<Value>,
    dynamic: Option<Value>,
}

impl Config {
    /// Reads `quantization_config`. Unknown keys that `allowed` names are ignored.
    ///
    /// # Errors
    /// `unsupported_format` for weights or activations that this crate cannot interpret; `invalid_checkpoint` for a
    /// broken config.
    pub fn parse(config: &Value, allowed: &[String]) -> Result<Self> {
        let raw: RawConfig = json::read(config).map_err(broken)?;
        keys::check("compressed-tensors", config, allowed)?;
        for (name, value) in [
            ("kv_cache_scheme", &raw.kv_cache_scheme),
            ("sparsity_config", &raw.sparsity_config),
            ("transform_config", &raw.transform_config),
        ] {
            let says_nothing = match value {
                None | Some(Value::Null) => true,
                Some(Value::Object(map)) => {
                    map.is_empty() || map.get("format").and_then(Value::as_str) == Some("dense")
                }
                Some(_) => false,
            };
            if !says_nothing {
                return Err(Error::unsupported_format(format!("{} is not supported", quoted(name))));
            }
        }
        let mut groups = Vec::new();
        let mut targets = Vec::new();
        for (name, value) in raw.config_groups.unwrap_or_default() {
            let (group, group_targets) = parse_group(&value, raw.format.as_deref(), allowed)
                .context_with(|| format!("group {}", quoted(&name)))?;
            groups.push(group);
            targets.push(group_targets);
        }
        if groups.is_empty() {
            return Err(Error::invalid_checkpoint(
                "expected at least one group in `config_groups` but found none",
            ));
        }
        let targets =
            Targets::new(targets.iter().map(Vec::as_slice), raw.ignore.as_deref().unwrap_or_default())?;
        Ok(Self { groups, targets, shapes: HashMap::new() })
    }

    /// The group of a module; `None` if it stays in floating point.
    pub(super) fn group_of(&self, module: &str) -> Option<Group> {
        let class = if crate::layout::is_embedding(module) { "Embedding" } else { "Linear" };
        self.targets.group_of(module, class).map(|index| self.groups[index])
    }

    pub(super) fn set_shape(&mut self, tensor: String, shape: [i64; 2]) {
        self.shapes.insert(tensor, shape);
    }

    pub(super) fn shape_of(&self, tensor: &str) -> Option<[i64; 2]> {
        self.shapes.get(tensor).copied()
    }
}

fn broken(error: serde_json::Error) -> Error {
    Error::invalid_checkpoint(clipped(&error.to_string(), 200))
}

fn unsupported(what: &str, expected: &str, found: impl std::fmt::Display) -> Error {
    let found = clipped(&found.to_string(), 100);
    Error::unsupported_format(format!("expected {what} to be {expected} but found {found}"))
}

fn parse_group(
    value: &Value,
    global_format: Option<&str>,
    allowed: &[String],
) -> Result<(Group, Vec<String>)> {
    if value.is_array() {
        return Err(Error::unsupported_format("a preset instead of a written-out scheme is not supported"));
    }
    let raw: RawGroup = json::read(value).map_err(broken)?;
    keys::refuse_unknown(value, &[&GROUP_KEYS], allowed)?;
    for key in ["weights", "input_activations"] {
        if let Some(args) = value.get(key) {
            keys::refuse_unknown(args, &[&ARGS_KEYS], allowed).context_with(|| key)?;
        }
    }
    let Some(weights) = raw.weights else {
        return Err(Error::unsupported_format("a group that quantizes activations alone is not supported"));
    };
    if raw.output_activations.is_some_and(|value| !value.is_null()) {
        return Err(Error::unsupported_format("quantized `output_activations` are not supported"));
    }
    let spelling = match raw.format.as_deref().or(global_format) {
        None | Some("mixed-precision") => None,
        Some("pack-quantized") => Some(Spelling::Packed),
        Some("int-quantized" | "naive-quantized") => Some(Spelling::Bytes),
        Some(other) => {
            let expected = "pack-quantized, int-quantized or naive-quantized";
            return Err(unsupported("`format`", expected, quoted(other)));
        }
    };
    let activations = match &raw.input_activations {
        None => Activations::F32,
        Some(args) => parse_activations(args).context_with(|| "input_activations")?,
    };
    let scheme = parse_weights(&weights).context_with(|| "weights")?;
    Ok((Group { scheme, activations, spelling }, raw.targets))
}

fn is_dynamic(args: &RawArgs) -> bool {
    args.dynamic.as_ref().is_some_and(|value| *value != Value::Bool(false) && !value.is_null())
}

fn check_type(args: &RawArgs) -> Result<()> {
    match args.number_type.as_deref() {
        None => Ok(()),
        Some(name) if name.eq_ignore_ascii_case("int") => Ok(()),
        Some(other) => Err(unsupported("`type`", "int", quoted(other))),
    }
}

fn parse_weights(args: &RawArgs) -> Result<Scheme> {
    check_type(args)?;
    if is_dynamic(args) {
        return Err(Error::unsupported_format("weights with `dynamic` scales are not supported"));
    }
    if let Some(order) =
        args.actorder.as_ref().filter(|value| !value.is_null() && **value != Value::Bool(false))
    {
        // With `static` and `weight`, columns are in input order. With `group`, formerly `dynamic`, `weight_g_idx`
        // holds the group of each column.
        if !matches!(order.as_str(), Some("static" | "weight" | "group" | "dynamic")) {
            return Err(unsupported("`actorder`", "group, static, weight or null", order));
        }
    }
    let bits = Bits::try_from(args.num_bits)?;
    let group = |size: i64| match usize::try_from(size) {
        Ok(size) if size > 0 => Ok(Granularity::Group(size)),
        _ => Err(Error::invalid_checkpoint(format!("expected a positive `group_size` but found {size}"))),
    };
    let granularity = match (args.strategy.as_deref(), args.group_size) {
        (Some("group"), size) => group(size.unwrap_or(0))?,
        (Some("channel"), _) => Granularity::Channel,
        (Some("tensor"), _) | (None, None) => Granularity::Tensor,
        (None, Some(-1)) => Granularity::Channel,
        (None, Some(size)) => group(size)?,
        (Some(other), _) => return Err(unsupported("`strategy`", "group, channel or tensor", quoted(other))),
    };
    Ok(Scheme::Integer { bits, granularity, symmetric: args.symmetric.unwrap_or(true) })
}

/// Accepts only what [`Activations::Int8`] does: one symmetric scale per token, computed at run time.
fn parse_activations(args: &RawArgs) -> Result<Activations> {
    check_type(args)?;
    let dynamic = args.dynamic == Some(Value::Bool(true));
    let per_token = args.strategy.as_deref() == Some("token");
    if args.num_bits != 8 || !dynamic || !per_token || args.symmetric == Some(false) {
        return Err(Error::unsupported_format(
            "expected symmetric 8-bit activations with `dynamic: true` and `strategy: token`",
        ));
    }
    Ok(Activations::Int8)
}
