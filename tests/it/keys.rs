//! Keys of configuration files: every key of transformers and gguf has a decision, unknown ones are refused, and the
//! configurations of published models open.
//!
//! `tests/interop/make_keys.py` and `make_configs.py` write the fixtures. `cargo xtask interop` compares them with what the
//! installed transformers gives.

use crate::support::fixture;
use lowbit::internals::format::known_keys::{KnownKeys, Treatment, is_neutral, treatment};
use lowbit::internals::format::source::MemoryDir;
use lowbit::internals::layout::{awq, bitnet_hf, compressed_tensors, gptq, keys as layout_keys};
use lowbit::internals::model::config::keys::{self, CONFIG, GENERATION, ROPE};
use lowbit::internals::task::block_on;
use lowbit::internals::tokenizer::HuggingFaceTokenizer;
use lowbit::internals::tokenizer::keys::TOKENIZER;
use lowbit::{ErrorCode, ModelConfig};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
}

/// The keys without a decision, with the file that has them.
fn undecided(keys: &Value) -> Vec<String> {
    let mut undecided = Vec::new();
    let mut decide = |file: &str, list: &Value, is_known: &dyn Fn(&str) -> bool| {
        let unknown = names(list).into_iter().filter(|name| !is_known(name));
        undecided.extend(unknown.map(|name| format!("{file}: {name}")));
    };
    decide("config.json", &keys["base"], &|name| treatment(CONFIG, name).is_some());
    for (family, list) in keys["config"].as_object().unwrap() {
        decide(&format!("config.json of {family}"), list, &|name| treatment(CONFIG, name).is_some());
    }
    decide("rope_parameters", &keys["rope"], &|name| treatment(ROPE, name).is_some());
    decide("generation_config.json", &keys["generation"], &|name| treatment(GENERATION, name).is_some());
    decide("tokenizer_config.json", &keys["tokenizer"], &|name| {
        treatment(TOKENIZER, name).is_some() || name.ends_with("_token")
    });
    for (method, list) in keys["quantization"].as_object().unwrap() {
        decide(&format!("quantization_config of {method}"), list, &|name| {
            layout_keys::is_known(method, name)
        });
    }
    undecided
}

#[test]
fn every_key_of_transformers_has_a_decision() {
    let keys = read(&fixture("keys.json"));
    assert_eq!(undecided(&keys), [""; 0]);
    // The check finds what nobody decided about.
    let mut more = keys;
    more["config"]["llama"].as_array_mut().unwrap().push(json!("shared_kv_layers"));
    assert_eq!(undecided(&more), ["config.json of llama: shared_kv_layers"]);
}

#[test]
fn configurations_of_published_models_open() {
    let configs = read(&fixture("configs.json"));
    let configs = configs.as_array().unwrap();
    let (mut opened, mut of_supported) = (0, 0);
    for entry in configs {
        let what = format!("{} {}", entry["name"], entry["shape"]);
        let found = ModelConfig::from_json(&entry["config"]);
        match entry["refused"].as_str() {
            Some(key) => {
                let error = found.unwrap_err();
                assert_eq!(error.code(), ErrorCode::UnsupportedModel, "{what}: {error}");
                assert!(error.to_string().contains(key), "{what}: {error}");
            }
            None => {
                of_supported += 1;
                opened += usize::from(found.is_ok());
                if let Err(error) = found {
                    println!("{what}: {error}");
                }
            }
        }
    }
    assert!(configs.len() >= 100 && of_supported >= 100, "{of_supported} of {}", configs.len());
    assert!(opened * 100 >= of_supported * 98, "{opened} of {of_supported} open");
}

#[test]
fn both_shapes_of_a_configuration_are_the_same_model() {
    let configs = read(&fixture("configs.json"));
    for pair in configs.as_array().unwrap().chunks(2) {
        let [published, saved] = pair else { panic!("an odd number of configurations") };
        assert_eq!(published["name"], saved["name"]);
        if published["refused"].is_null() {
            let [published, saved] =
                [published, saved].map(|entry| ModelConfig::from_json(&entry["config"]).unwrap());
            assert_eq!(published, saved);
        }
    }
}

/// Any JSON value, nested at most twice.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z_]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{1,8}", inner, 0..3).prop_map(Value::from_iter),
        ]
    })
}

/// A known key or any other.
fn any_key(known: &'static [KnownKeys]) -> impl Strategy<Value = String> {
    let known: Vec<&str> = known.iter().flat_map(|keys| keys.names).copied().collect();
    prop_oneof![prop::sample::select(known).prop_map(str::to_owned), "[a-z_]{1,12}"]
}

/// Some keys of quantization configs.
const QUANTIZATION: &[KnownKeys] = &[KnownKeys {
    treatment: Treatment::Honoured,
    names: &[
        "bits",
        "sym",
        "desc_act",
        "zero_point",
        "format",
        "ignore",
        "linear_class",
        "modules_to_not_convert",
        "meta",
    ],
}];

/// The configurations of the fixture.
fn published() -> Vec<Value> {
    let configs = read(&fixture("configs.json"));
    configs.as_array().unwrap().iter().map(|entry| entry["config"].clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// No key and no value makes a reader panic. An unknown key is refused by name; allowed, it changes nothing.
    #[test]
    fn any_key_of_config_json_is_read_or_refused(
        config in prop::sample::select(published()),
        key in any_key(CONFIG),
        value in any_value(),
    ) {
        let mut changed = config.clone();
        changed[&key] = value.clone();
        let found = ModelConfig::from_json(&changed);
        let is_unknown = treatment(CONFIG, &key).is_none() && !is_neutral(&value);
        if is_unknown {
            let error = found.unwrap_err();
            prop_assert_eq!(error.code(), ErrorCode::UnsupportedModel);
            prop_assert!(error.to_string().contains(&format!("unknown key `{key}` = ")), "{}", error);
            prop_assert_eq!(keys::check(&changed, std::slice::from_ref(&key)).unwrap(), [key]);
        }
    }

    #[test]
    fn any_key_of_a_quantization_config_is_read_or_refused(
        method in prop::sample::select(vec!["gptq", "awq", "bitnet", "compressed-tensors"]),
        key in any_key(QUANTIZATION),
        value in any_value(),
    ) {
        let mut config = json!({"quant_method": method, "bits": 4, "group_size": 32, "config_groups": {}});
        config.as_object_mut().unwrap().retain(|name, _| layout_keys::is_known(method, name));
        config[&key] = value.clone();
        let error = match method {
            "gptq" => gptq::Config::parse(&config, None, &[]).err(),
            "awq" => awq::Config::parse(&config, &[]).err(),
            "bitnet" => bitnet_hf::Config::parse(&config, &[]).err(),
            _ => compressed_tensors::Config::parse(&config, &[]).err(),
        };
        if !layout_keys::is_known(method, &key) && !is_neutral(&value) {
            let error = error.unwrap();
            prop_assert_eq!(error.code(), ErrorCode::UnsupportedFormat);
            prop_assert!(error.to_string().contains(&format!("unknown key `{key}` = ")), "{}", error);
        }
    }

    #[test]
    fn any_key_of_generation_config_json_is_read_or_refused(key in any_key(GENERATION), value in any_value()) {
        let object = Value::Object(Map::from_iter([(key.clone(), value.clone())]));
        let is_unknown = treatment(GENERATION, &key).is_none() && !is_neutral(&value);
        prop_assert_eq!(keys::check_generation(&object, &[]).is_err(), is_unknown);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_key_of_tokenizer_config_json_is_read_or_refused(key in any_key(TOKENIZER), value in any_value()) {
        let config = Value::Object(Map::from_iter([(key.clone(), value.clone())]));
        let dir = MemoryDir::new("model")
            .with("tokenizer.json", small_tokenizer())
            .with("tokenizer_config.json", config.to_string().into_bytes());
        let found = block_on(HuggingFaceTokenizer::open(&dir, None)).err();
        let is_token = key.ends_with("_token") && (value.is_string() || value.get("content").is_some());
        if treatment(TOKENIZER, &key).is_none() && !is_neutral(&value) && !is_token {
            let (error, says) = (found.unwrap().to_string(), format!("unknown key `{key}` = "));
            prop_assert!(error.contains(&says), "{}", error);
        }
    }
}

/// A tokenizer of three words.
fn small_tokenizer() -> Vec<u8> {
    let vocab = json!({"a": 0, "b": 1, "ab": 2});
    json!({"version": "1.0", "model": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"]]}})
        .to_string()
        .into_bytes()
}
