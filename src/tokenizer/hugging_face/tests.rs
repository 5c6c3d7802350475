//! Tests with tokenizers of small folders. Expected values are those of transformers 5.23.

use super::*;
use crate::format::source::MemoryDir;
use crate::task::block_on;
use serde_json::json;

/// A vocabulary of three words, and the added tokens `<s>` and `<pad>`.
fn file() -> Value {
    let added = |id, content| {
        json!({
            "id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false,
        })
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null, "decoder": null,
        "added_tokens": [added(3, "<s>"), added(4, "<pad>")],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "<unk>": 2}, "unk_token": "<unk>"},
    })
}

fn folder(files: &[(&str, String)]) -> MemoryDir {
    let mut dir = MemoryDir::new("m").with("tokenizer.json", file().to_string().into_bytes());
    for (name, text) in files {
        dir.insert((*name).to_owned(), text.clone().into_bytes());
    }
    dir
}

fn open(files: &[(&str, String)], bos_token_id: Option<u32>) -> HuggingFaceTokenizer {
    block_on(HuggingFaceTokenizer::open(&folder(files), bos_token_id)).unwrap()
}

const PRINT_BOS: &str = "[{{ bos_token }}]{{ bos_token is defined }}{{ messages[0].content }}";

fn prompt(codec: &HuggingFaceTokenizer) -> String {
    codec.apply_chat_template(&[json!({"role": "user", "content": "a"})]).unwrap()
}

#[test]
fn prompts_get_the_bos_token_that_the_tokenizer_names() {
    let template = ("chat_template.jinja", PRINT_BOS.to_owned());
    for (config, rendered, encoded) in [
        (json!({"bos_token": "<s>"}), "[<s>]Truea", vec![0]),
        (json!({"bos_token": {"content": "<s>", "__type": "AddedToken"}}), "[<s>]Truea", vec![0]),
        (json!({"bos_token": "<s>", "add_bos_token": true}), "[<s>]Truea", vec![3, 0]),
        (json!({"bos_token": null, "add_bos_token": true}), "[]Falsea", vec![0]),
        (json!({}), "[]Falsea", vec![0]),
        (json!({"tokenizer_class": "LlamaTokenizer"}), "[<s>]Truea", vec![3, 0]),
        (json!({"tokenizer_class": "LlamaTokenizer", "bos_token": null}), "[]Falsea", vec![0]),
    ] {
        let codec = open(&[("tokenizer_config.json", config.to_string()), template.clone()], Some(3));
        assert_eq!(prompt(&codec), rendered, "{config}");
        assert_eq!(codec.encode_prompt("a").unwrap(), encoded, "{config}");
        // Validation windows start with the model configuration's BOS token.
        assert_eq!(codec.bos_token_id(), Some(3), "{config}");
    }
}

#[test]
fn special_tokens_come_by_their_names() {
    let print = "{{ eos_token }}|{{ pad_token }}|{{ image_token }}|{{ boi }}|{{ other }}";
    let template = ("chat_template.jinja", print.to_owned());
    let config = json!({
        "eos_token": "E", "pad_token": null, "image_token": "I", "errors": "O", "extra_special_tokens": {"boi": "B"},
    });
    let codec = open(&[("tokenizer_config.json", config.to_string()), template.clone()], None);
    assert_eq!(prompt(&codec), "E||I|B|");
    // The older file is read when tokenizer_config.json has no `added_tokens_decoder`.
    let map =
        ("special_tokens_map.json", json!({"eos_token": {"content": "M"}, "pad_token": "P"}).to_string());
    let codec = open(&[("tokenizer_config.json", config.to_string()), template.clone(), map.clone()], None);
    assert_eq!(prompt(&codec), "M|P|I|B|");
    let config = json!({"eos_token": "E", "added_tokens_decoder": {}});
    let codec = open(&[("tokenizer_config.json", config.to_string()), template, map], None);
    assert_eq!(prompt(&codec), "E||||");
}

#[test]
fn templates_come_from_wherever_people_have_them() {
    let named = json!([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]);
    let tools = [json!({"type": "function"})];
    let chat = [json!({"role": "user"})];
    for (files, plain, with_tools) in [
        (vec![("tokenizer_config.json", json!({"chat_template": named}).to_string())], Some("D"), Some("T")),
        (vec![("tokenizer_config.json", json!({"chat_template": "C"}).to_string())], Some("C"), Some("C")),
        (
            vec![
                ("tokenizer_config.json", json!({"chat_template": named}).to_string()),
                ("chat_template.jinja", "J".to_owned()),
            ],
            Some("J"),
            Some("J"),
        ),
        (vec![("chat_template.json", json!({"chat_template": "P"}).to_string())], Some("P"), Some("P")),
        (vec![("tokenizer_config.json", json!({"chat_template": [named[0]]}).to_string())], None, Some("T")),
        (vec![("tokenizer_config.json", json!({"chat_template": null}).to_string())], None, None),
        (
            vec![(
                "tokenizer_config.json",
                "{\"model_max_length\": NaN, \"errors\": \"NaN\", \"chat_template\": \"N\", \"stride\": -Infinity}".to_owned(),
            )],
            Some("N"),
            Some("N"),
        ),
    ] {
        let codec = open(&files, None);
        assert_eq!(codec.has_chat_template(), plain.or(with_tools).is_some(), "{files:?}");
        assert_eq!(codec.apply_chat_template(&chat).ok().as_deref(), plain, "{files:?}");
        let found = codec.apply_chat_template_with(&chat, Some(&tools), None);
        assert_eq!(found.ok().as_deref(), with_tools, "{files:?}");
    }
    for (file, text, named) in [
        ("tokenizer_config.json", "[]", "expected an object"),
        ("tokenizer_config.json", "", "expected JSON"),
        ("tokenizer_config.json", "{\"chat_template\": 5}", "`chat_template`"),
        ("tokenizer_config.json", "{\"chat_template\": [{\"name\": \"default\"}]}", "`template`"),
        ("chat_template.json", "{", "expected JSON"),
    ] {
        let Err(error) = block_on(HuggingFaceTokenizer::open(&folder(&[(file, text.to_owned())]), None))
        else {
            panic!("{file} was taken")
        };
        let error = error.to_string();
        assert!(error.contains(file) && error.contains(named), "{error}");
    }
}

#[test]
fn a_chat_is_rendered_with_and_without_the_beginning_of_an_answer() {
    let template = "{{ messages[0].content }}{% if add_generation_prompt %}>{% endif %}{{ tools|length }}";
    let codec = open(&[("chat_template.jinja", template.to_owned())], None);
    let (chat, tools) = ([json!({"role": "user", "content": "a"})], [json!({})]);
    assert_eq!(codec.apply_chat_template_with(&chat, Some(&tools), None).unwrap(), "a>1");
    assert_eq!(codec.chat_so_far(&chat, Some(&tools)).unwrap(), "a1");
}

#[test]
fn added_tokens_may_lie_beyond_the_embedding() {
    let mut codec = open(&[], Some(3));
    assert_eq!((codec.vocab_size(), codec.base_vocab_size()), (5, 3));
    codec.fit(4).unwrap();
    assert_eq!(codec.encode("a <s> b").unwrap(), [0, 3, 1]);
    for error in [codec.encode("a <pad>").unwrap_err(), codec.encode_prompt("<pad>").unwrap_err()] {
        assert_eq!(error.to_string(), "the token `<pad>` has the id 4 but the model's embedding has 4 rows");
    }
    // Decoding such an id is allowed.
    assert_eq!(codec.decode(&[0, 4]).unwrap(), "a");
    // The BOS token and the base vocabulary need rows.
    assert!(codec.fit(3).unwrap_err().to_string().contains("`<s>`"));
    assert!(open(&[], None).fit(3).is_ok());
    let error = open(&[], None).fit(2).unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidCheckpoint);
    assert!(error.to_string().contains("makes 3 ids but the embedding has 2 rows"), "{error}");
}
