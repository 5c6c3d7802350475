//! Every key of config.json with a second value: our logits are those of transformers, or the key is refused.
//!
//! `tests/interop/make_sweep.py` writes the fixture, with what transformers computes.

use crate::support::synthetic::{self, Tensor};
use crate::support::{distances, fixture, load_checkpoint, logits};
use lowbit::ErrorCode;
use lowbit::internals::model::Checkpoint;
use lowbit::internals::task::block_on;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;

/// Largest distance of a logit from transformers', relative to the largest one.
const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Sweep {
    a: f32,
    /// The compared logits of the last token.
    ids: Vec<usize>,
    families: BTreeMap<String, Family>,
}

#[derive(Deserialize)]
struct Family {
    config: Map<String, Value>,
    tokens: Vec<u32>,
    tensors: Vec<Tensor>,
    logits: Vec<f32>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    changes: Map<String, Value>,
    result: Outcome,
    /// The tensors, if they differ from those of the family.
    tensors: Option<Vec<Tensor>>,
}

/// What transformers computes.
#[derive(Deserialize)]
#[serde(untagged)]
enum Outcome {
    /// `same`: the family's logits.
    Same(String),
    Logits {
        logits: Vec<f32>,
    },
    Error {
        error: String,
    },
}

/// Keys that say how transformers returns results. It fails with this value, but the model stays what it is.
const OF_THE_TOOL: [&str; 1] = ["return_dict"];

/// Cases that transformers runs and lowbit refuses in every family.
const REFUSED: [&str; 26] = [
    "add_cross_attention",
    "architectures",
    "attention_multiplier",
    "attn_logit_softcapping",
    "cross_attention_hidden_size",
    "embedding_multiplier",
    "final_logit_softcapping",
    "hidden_act to gelu",
    "is_causal",
    "is_encoder_decoder",
    "layer_types with a window",
    "logits_scaling",
    "no_rope_layers",
    "num_experts",
    "num_local_experts",
    "partial_rotary_factor",
    "pruned_heads",
    "qk_layernorm",
    "residual_multiplier",
    "rope_interleaved",
    "rope_parameters of dynamic",
    "rope_parameters of longrope",
    "rope_parameters of partial rotation",
    "rope_parameters of yarn",
    "tie_encoder_decoder",
    "weight_bits",
];
/// The same, in some families. The classes of the others do not read the key, or transformers fails too.
const REFUSED_IN: [(&str, &[&str]); 4] = [
    ("layer_types", &["mistral"]),
    ("max_window_layers with a window", &["mistral", "qwen2", "qwen3"]),
    ("sliding_window", &["mistral"]),
    ("sliding_window with its switch", &["mistral"]),
];

/// Keys without a second value: the family's own name, and what only transformers' objects have.
const NOT_SWEPT: [&str; 5] = [
    "_attn_implementation_internal",
    "_experts_implementation_internal",
    "_output_attentions",
    "_post_init_done",
    "model_type",
];

#[test]
fn every_key_of_transformers_has_a_second_value() {
    let keys: Value = serde_json::from_slice(&fs::read(fixture("keys.json")).unwrap()).unwrap();
    for (family, of_family) in &sweep().families {
        let lists = [&keys["config"][family.as_str()], &keys["base"]];
        let known = lists.into_iter().flat_map(|list| list.as_array().unwrap());
        let known: BTreeSet<&str> = known.map(|key| key.as_str().unwrap()).collect();
        let changed =
            of_family.cases.iter().flat_map(|case| case.changes.keys().map(String::as_str)).collect();
        assert_eq!(known.difference(&changed).copied().collect::<Vec<_>>(), NOT_SWEPT, "{family}");
    }
}

fn sweep() -> Sweep {
    serde_json::from_slice(&fs::read(fixture("sweep.json")).unwrap()).unwrap()
}

#[test]
fn a_key_is_computed_as_in_transformers_or_refused() {
    let sweep = sweep();
    let (mut wrong, mut refused, mut equal) = (Vec::new(), BTreeMap::<_, BTreeSet<_>>::new(), 0);
    for (family, of_family) in &sweep.families {
        for case in &of_family.cases {
            let name = format!("{family}: {}", case.name);
            let mut config = of_family.config.clone();
            config.extend(case.changes.clone());
            for key in ["rope_parameters", "layer_types"] {
                if config.get(key).is_some_and(Value::is_null) {
                    config.remove(key);
                }
            }
            let config = serde_json::to_vec(&config).unwrap();
            let tensors = case.tensors.as_ref().unwrap_or(&of_family.tensors);
            let dir = Arc::new(synthetic::checkpoint(&name, &config, tensors, sweep.a));
            let (checkpoint, expected) = match (block_on(Checkpoint::open(dir)), &case.result) {
                (Ok(checkpoint), Outcome::Same(same)) if same == "same" => (checkpoint, &of_family.logits),
                (Ok(checkpoint), Outcome::Logits { logits }) => (checkpoint, logits),
                (Ok(checkpoint), _) if OF_THE_TOOL.contains(&case.name.as_str()) => {
                    (checkpoint, &of_family.logits)
                }
                (Ok(_), Outcome::Same(other) | Outcome::Error { error: other }) => {
                    wrong.push(format!("{name}: transformers does not run it: {other}"));
                    continue;
                }
                (Err(error), outcome) => {
                    println!("{error}");
                    let runs = !matches!(outcome, Outcome::Error { .. });
                    if runs && error.code() != ErrorCode::UnsupportedModel {
                        wrong.push(error.to_string());
                    }
                    if runs {
                        refused.entry(case.name.as_str()).or_default().insert(family.as_str());
                    }
                    continue;
                }
            };
            let count = of_family.tokens.len();
            let ours = logits(&mut load_checkpoint(&checkpoint), &of_family.tokens, count).pop().unwrap();
            let ours: Vec<f32> = sweep.ids.iter().map(|&id| ours[id]).collect();
            let largest = expected.iter().fold(0.0f32, |largest, logit| largest.max(logit.abs()));
            let distance = distances(&ours, expected).fold(0.0, f32::max) / largest;
            if distance > TOLERANCE {
                wrong.push(format!("{name}: {distance:.1e} from transformers"));
            }
            equal += 1;
        }
    }
    println!("{equal} equal");
    assert!(wrong.is_empty(), "neither equal nor refused:\n{}", wrong.join("\n"));
    let every: BTreeSet<&str> = sweep.families.keys().map(String::as_str).collect();
    let in_every = REFUSED.map(|name| (name, every.clone()));
    let in_some = REFUSED_IN.map(|(name, families)| (name, families.iter().copied().collect()));
    assert_eq!(refused, in_every.into_iter().chain(in_some).collect::<BTreeMap<_, _>>());
}
