//! Tests of writing tokenizers: what GGUF can express, and what it cannot.

use super::{llama, tensors, write_with};
use crate::error::ErrorCode;
use crate::layout::gguf::{GgufTokenizer, tokenizer_metadata};
use serde_json::{Value, json};

/// An added token with these flags.
fn added(flags: Value) -> Value {
    let mut token = json!({"id": 4, "content": "<x>"});
    token.as_object_mut().unwrap().extend(flags.as_object().unwrap().clone());
    json!([token])
}

/// A post-processor that adds these ids around a text.
fn template(front: &[u32], behind: &[u32]) -> Value {
    let special = |id: &u32| json!({"SpecialToken": {"id": format!("t{id}"), "type_id": 0}});
    let mut single: Vec<Value> = front.iter().map(special).collect();
    single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
    single.extend(behind.iter().map(special));
    let mut tokens = serde_json::Map::new();
    for id in front.iter().chain(behind) {
        tokens.insert(format!("t{id}"), json!({"id": format!("t{id}"), "ids": [id], "tokens": ["?"]}));
    }
    json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": tokens})
}

/// A byte-level tokenizer with the ids 0 to 5: among them a beginning token, an end token and another end token.
fn byte_level() -> Value {
    let token = |id: u32, content: &str| json!({"id": id, "content": content, "special": true});
    json!({"added_tokens": [token(2, "<bos>"), token(3, "<|stop|>"), token(4, "<|eot_id|>"), token(5, "<other>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "merges": [], "vocab": {"a": 0, "b": 1}}})
}

#[test]
fn the_flags_say_what_the_tokenizer_does_to_a_prompt() {
    let sequence = |steps: &[Value]| json!({"type": "Sequence", "processors": steps});
    let offsets =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
    let roberta = json!({"type": "RobertaProcessing", "sep": ["</s>", 3], "cls": ["<s>", 2],
        "trim_offsets": true, "add_prefix_space": false});
    let bos = template(&[2], &[]);
    let cases = [
        (Value::Null, json!({}), Ok((false, false))),
        (offsets.clone(), json!({}), Ok((false, false))),
        (bos.clone(), json!({}), Ok((true, false))),
        (sequence(&[offsets.clone(), bos.clone()]), json!({}), Ok((true, false))),
        (sequence(&[bos.clone(), offsets.clone()]), json!({}), Ok((true, false))),
        (sequence(&[bos.clone(), template(&[], &[3])]), json!({}), Err("its post-processor is")),
        // The template takes precedence over the flags.
        (sequence(&[offsets, bos.clone()]), json!({"add_bos_token": false}), Ok((true, false))),
        (bos.clone(), json!({"add_bos_token": true, "add_eos_token": true}), Ok((true, false))),
        (Value::Null, json!({"add_bos_token": true}), Ok((true, false))),
        (Value::Null, json!({"tokenizer_class": "LlamaTokenizerFast"}), Ok((true, false))),
        (
            Value::Null,
            json!({"tokenizer_class": "LlamaTokenizer", "add_bos_token": false}),
            Ok((false, false)),
        ),
        (template(&[2], &[3]), json!({}), Ok((true, true))),
        (roberta, json!({}), Ok((true, true))),
        (
            template(&[5], &[]),
            json!({}),
            Err("it puts `<other>` before a text, but GGUF has only a flag for `<bos>`"),
        ),
        (template(&[5], &[]), json!({"add_bos_token": true}), Err("it puts `<bos>`, `<other>` before")),
        (template(&[2], &[5]), json!({}), Err("it puts `<other>` after a text")),
        (template(&[2, 2], &[]), json!({}), Err("it puts `<bos>`, `<bos>` before")),
        (template(&[9], &[]), json!({}), Err("token 9, which has no row in the embedding")),
    ];
    for (post_processor, flags, expected) in cases {
        let mut file = byte_level();
        file["post_processor"] = post_processor;
        let mut names = json!({"bos_token": "<bos>", "eos_token": {"content": "<|stop|>"}});
        names.as_object_mut().unwrap().extend(flags.as_object().unwrap().clone());
        let config = json!({"vocab_size": 6, "eos_token_id": [3, 4]});
        let GgufTokenizer { metadata, problem, .. } =
            tokenizer_metadata(file.to_string().as_bytes(), &names, &config);
        match expected {
            Ok((front, behind)) => {
                assert!(problem.is_none(), "{file}: {problem:?}");
                let flag = |key: &str| metadata[&format!("tokenizer.ggml.{key}")].as_bool().unwrap();
                assert_eq!((flag("add_bos_token"), flag("add_eos_token")), (front, behind), "{file} {flags}");
                assert_eq!(metadata["tokenizer.ggml.bos_token_id"].as_u64(), Some(2));
            }
            Err(message) => {
                let problem = problem.expect(message).to_string();
                assert!(problem.contains(message), "expected {message:?} but found {problem}");
            }
        }
    }
}

#[test]
fn tokens_that_end_a_text_are_named_or_known_or_said() {
    let with = |eos: Option<&str>, ends: &[u32]| {
        let config = json!({"vocab_size": 16, "eos_token_id": ends});
        let names = json!({"eos_token": eos});
        let made = tokenizer_metadata(byte_level().to_string().as_bytes(), &names, &config);
        assert!(made.problem.is_none(), "{:?}", made.problem);
        let id = |key: &str| Some(made.metadata.get(&format!("tokenizer.ggml.{key}"))?.as_u64().unwrap());
        ([id("eos_token_id"), id("eot_token_id"), id("eom_token_id")], made.notes.join("\n"))
    };
    assert_eq!(with(Some("<|stop|>"), &[3, 4]), ([Some(3), None, None], String::new()));
    assert_eq!(with(Some("<|stop|>"), &[3, 4, 5]).0, [Some(3), Some(5), None]);
    assert_eq!(with(Some("<|stop|>"), &[4, 5, 0]).0, [Some(3), Some(5), Some(0)]);
    for (eos, ends, said) in [
        (Some("<|stop|>"), &[3][..], "llama.cpp also ends a text at `<|eot_id|>`"),
        (Some("<|stop|>"), &[4, 5], "llama.cpp also ends a text at `<|stop|>`"),
        (Some("<|stop|>"), &[3, 4, 5, 0, 1], "too few keys for the tokens that end a text: `b` no longer do"),
        (None, &[], "names no token that ends a text, so llama.cpp takes token 11, `[PAD11]`"),
    ] {
        let (_, notes) = with(eos, ends);
        assert!(notes.contains(said), "expected {said:?} but found {notes:?}");
    }
}

#[test]
fn tokens_without_a_row_are_left_out_and_named() {
    let mut file = byte_level();
    file["added_tokens"].as_array_mut().unwrap().push(json!({"id": 6, "content": "<pad>", "special": true}));
    let made = |file: &Value, rows: u32| {
        tokenizer_metadata(
            file.to_string().as_bytes(),
            &json!({"pad_token": "<pad>"}),
            &json!({"vocab_size": rows}),
        )
    };
    let GgufTokenizer { metadata, problem, notes } = made(&file, 6);
    assert!(problem.is_none(), "{problem:?}");
    assert!(
        notes.iter().any(|n| n == "the tokens beyond the 6 rows of the embedding are left out: `<pad>`"),
        "{notes:?}"
    );
    let tokens = metadata["tokenizer.ggml.tokens"].as_array().unwrap().as_strings().unwrap().to_vec();
    assert_eq!(tokens, ["a", "b", "<bos>", "<|stop|>", "<|eot_id|>", "<other>"]);
    assert!(!metadata.contains_key("tokenizer.ggml.padding_token_id"));
    // Ordinary words are different: such a tokenizer belongs to another model.
    file["model"]["vocab"]["c"] = json!(7);
    let problem = made(&file, 6).problem.unwrap().to_string();
    assert!(problem.contains("it has ids up to 8 for"), "{problem}");
    // Rows without a token get names that no token has.
    let mut file = byte_level();
    file["added_tokens"].as_array_mut().unwrap().push(json!({"id": 6, "content": "[PAD7]"}));
    let metadata = made(&file, 8).metadata;
    let tokens = metadata["tokenizer.ggml.tokens"].as_array().unwrap().as_strings().unwrap().to_vec();
    assert_eq!(tokens[6..], ["[PAD7]", "[PAD7]_"]);
}

#[test]
fn named_chat_templates_come_back() {
    let (mut config, file) = (json!({}), byte_level().to_string());
    config["chat_template"] = json!([
        {"name": "default", "template": "D"}, {"name": "tool-use", "template": "T"}, {"name": "rag", "template": "R"},
        {"name": "tool_use", "template": "again"}, {"name": "empty"},
    ]);
    let made = tokenizer_metadata(file.as_bytes(), &config, &json!({"vocab_size": 6, "eos_token_id": 4}));
    let text = |key: &str| made.metadata[key].as_str().unwrap();
    assert_eq!(text("tokenizer.chat_template"), "D");
    assert_eq!((text("tokenizer.chat_template.tool_use"), text("tokenizer.chat_template.rag")), ("T", "R"));
    let names = made.metadata["tokenizer.chat_templates"].as_array().unwrap().as_strings().unwrap().to_vec();
    assert_eq!(names, ["tool_use", "rag"]);
    let notes = made.notes.join("\n");
    for said in ["`tool-use` is called `tool_use`", "only the first of several", "without a name or a text"] {
        assert!(notes.contains(said), "{notes}");
    }
    let mut small = tensors();
    small[0].dims[0] = 6;
    let mut config = llama();
    config["vocab_size"] = json!(6);
    let opened = write_with(&config, Some(made.metadata), &small, 5000).unwrap();
    let read: Value = serde_json::from_slice(opened.files.get("tokenizer_config.json").unwrap()).unwrap();
    let expected = json!([{"name": "rag", "template": "R"}, {"name": "tool_use", "template": "T"},
        {"name": "default", "template": "D"}]);
    assert_eq!(read["chat_template"], expected);
}

/// This crate reads what GGUF cannot express from the tokenizer.json stored in the file.
#[test]
fn a_tokenizer_that_gguf_cannot_hold_is_carried_along() {
    let mut file = byte_level();
    file["added_tokens"][3]["rstrip"] = json!(true);
    let names =
        json!({"bos_token": "<bos>", "eos_token": "<|stop|>", "add_bos_token": true, "chat_template": "D"});
    let made = tokenizer_metadata(file.to_string().as_bytes(), &names, &json!({"eos_token_id": [3, 4]}));
    assert!(made.problem.is_some());
    let opened = write_with(&llama(), Some(made.metadata), &tensors(), 5000).unwrap();
    assert!(opened.tokenizer_problem.is_none(), "{:?}", opened.tokenizer_problem);
    let read = |name: &str| -> Value { serde_json::from_slice(opened.files.get(name).unwrap()).unwrap() };
    assert_eq!(read("tokenizer.json"), file);
    let config = read("tokenizer_config.json");
    for (key, value) in names.as_object().unwrap() {
        assert_eq!(config[key], *value, "{key}");
    }
    assert_eq!(
        (&opened.config_json["eos_token_id"], &opened.config_json["bos_token_id"]),
        (&json!([3, 4]), &json!(2))
    );
}

#[test]
fn tokenizers_that_gguf_cannot_hold_say_why() {
    let base = || {
        json!({"added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": false},
            "model": {"type": "BPE", "byte_fallback": true, "merges": [["a", "b"], ["ab", "a"]],
                "vocab": {"a": 0, "b": 1, "ab": 2, "aba": 3}}})
    };
    let config = json!({"vocab_size": 6});
    let metadata = |file: &Value| tokenizer_metadata(file.to_string().as_bytes(), &Value::Null, &config);
    let sound = metadata(&base());
    assert!(sound.problem.is_none(), "{:?}", sound.problem);
    let sound = sound.metadata;
    let scores = sound["tokenizer.ggml.scores"].as_array().unwrap().as_f32s().unwrap().to_vec();
    assert_eq!(scores, [-2.0, -2.0, 0.0, -1.0, 0.0, 0.0]);
    let tokens = sound["tokenizer.ggml.tokens"].as_array().unwrap().as_strings().unwrap().to_vec();
    assert_eq!(tokens[4..], ["[PAD4]", "[PAD5]"]);
    type Spoil = fn(&mut Value);
    let cases: [(&str, Spoil); 15] = [
        ("its model is `Unigram`", |f| f["model"]["type"] = json!("Unigram")),
        ("`a` and `ba` have no merge", |f| f["model"]["vocab"]["ba"] = json!(4)),
        ("the merges that make `aba` are not consecutive", |f| {
            f["model"]["vocab"]["ba"] = json!(4);
            f["model"]["merges"] = json!([["a", "ba"], ["b", "a"], ["ab", "a"], ["a", "b"]]);
        }),
        ("is not SentencePiece's", |f| f["normalizer"] = json!({"type": "NFKC"})),
        ("llama.cpp has no name", |f| f["model"]["byte_fallback"] = json!(false)),
        ("it has ids up to 9", |f| f["model"]["vocab"]["b"] = json!(8)),
        ("carry a prefix", |f| f["model"]["continuing_subword_prefix"] = json!("##")),
        ("its token `<x>` has `rstrip`", |f| f["added_tokens"] = added(json!({"rstrip": true}))),
        ("its token `<x>` has `lstrip`", |f| f["added_tokens"] = added(json!({"lstrip": true}))),
        ("its token `<x>` has `single_word`", |f| f["added_tokens"] = added(json!({"single_word": true}))),
        ("its token `<x>` is matched in normalized texts", |f| {
            f["added_tokens"] = added(json!({"normalized": true}));
            f["pre_tokenizer"] = Value::Null;
            f["normalizer"] = json!({"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "\u{2581}"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]});
        }),
        ("two of its tokens are `a`", |f| f["added_tokens"] = json!([{"id": 5, "content": "a"}])),
        ("it puts `a`, `b` before a text", |f| f["post_processor"] = template(&[0, 1], &[])),
        ("its token `<x>` is listed as 5 but becomes 4", |f| f["added_tokens"] = added(json!({"id": 5}))),
        ("its post-processor is", |f| f["post_processor"] = json!({"type": "Magic"})),
    ];
    for (message, spoil) in cases {
        let mut file = base();
        spoil(&mut file);
        let GgufTokenizer { metadata, problem, notes } = metadata(&file);
        let error = problem.expect(message);
        assert!(error.to_string().contains(message), "expected {message:?} but found {error}");
        assert_eq!(error.code(), ErrorCode::Tokenizer);
        // The tokenizer.json itself is stored.
        assert_eq!(metadata["tokenizer.ggml.model"].as_str(), Some("no_vocab"));
        assert_eq!(metadata["tokenizer.huggingface.json"].as_str(), Some(file.to_string().as_str()));
        assert!(notes.is_empty(), "{notes:?}");
    }
}
