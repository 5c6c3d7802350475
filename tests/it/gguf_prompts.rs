//! GGUF files that lowbit writes have the prompts, end tokens and templates of their source folder, in lowbit and (`cargo xtask
//! interop`) in llama.cpp.

use crate::gguf::{Around, llama_cpp};
use crate::support::fixture;
use lowbit::internals::format::sink::{FsSinkDir, MemorySinkDir, SinkDir};
use lowbit::internals::format::source::{MemoryDir, MemorySource};
use lowbit::internals::layout::TargetLayout;
use lowbit::internals::model::Checkpoint;
use lowbit::internals::pipeline::{ConvertOptions, ConvertOutcome, convert, plan_conversion};
use lowbit::internals::task::{Silent, block_on};
use lowbit::internals::tokenizer::{HuggingFaceTokenizer, TextCodec};
use serde_json::{Value, json};
use std::sync::Arc;

const FILE: &str = "model.gguf";
// Ids after 256 bytes and nine merges.
const BOS: u32 = 265;
const EOS: u32 = 266;
const EOT: u32 = 267;
const OTHER: u32 = 268;

const TEXTS: [&str; 6] = [
    "the thing and then",
    " The  thing, don't DON'T 12345 x=1\n\n \n",
    "a<|other|>  b",
    "<|begin|>the<|eot_id|>the",
    "<pad>",
    "",
];

/// The characters that represent bytes.
fn letters() -> Vec<char> {
    let shown = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut hidden = 256..;
    (0..256)
        .map(|byte| if shown(byte) { byte } else { hidden.next().unwrap() })
        .filter_map(char::from_u32)
        .collect()
}

/// A tokenizer like Llama 3's: bytes, a few merges, and special tokens.
fn tokenizer() -> Value {
    let mut vocab = serde_json::Map::new();
    for (id, letter) in letters().into_iter().enumerate() {
        vocab.insert(letter.to_string(), json!(id));
    }
    let merges = ["t h", "th e", "\u{120} t", "\u{120}t h", "\u{120}th e", "1 2", "12 3", "i n", "in g"];
    for (index, merge) in merges.iter().enumerate() {
        vocab.insert(merge.replace(' ', ""), json!(256 + index));
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(BOS, "<|begin|>"), special(EOS, "<|end_of_text|>"), special(EOT, "<|eot_id|>"),
            special(OTHER, "<|other|>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": false}, byte_level]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": vocab, "merges": merges},
    })
}

fn template(front: &[(&str, u32)], behind: &[(&str, u32)]) -> Value {
    let special = |(text, _): &(&str, u32)| json!({"SpecialToken": {"id": text, "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let mut single: Vec<Value> = front.iter().map(special).collect();
    single.push(text("A"));
    single.extend(behind.iter().map(special));
    let mut tokens = serde_json::Map::new();
    for (text, id) in front.iter().chain(behind) {
        tokens.insert((*text).to_owned(), json!({"id": text, "ids": [id], "tokens": [text]}));
    }
    json!({"type": "TemplateProcessing", "single": single, "pair": [text("A"), text("B")], "special_tokens": tokens})
}

/// The shipped model with this tokenizer.
fn folder(tokenizer: &Value, tokenizer_config: &Value, changes: &Value) -> Checkpoint {
    let file = |name: &str| std::fs::read(fixture("tale-llama").join(name)).unwrap();
    let mut config: Value = serde_json::from_slice(&file("config.json")).unwrap();
    config["bos_token_id"] = json!(BOS);
    config["eos_token_id"] = json!([EOS, EOT]);
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let dir = MemoryDir::new("folder")
        .with("config.json", config.to_string().into_bytes())
        .with("model.safetensors", file("model.safetensors"))
        .with("tokenizer.json", tokenizer.to_string().into_bytes())
        .with("tokenizer_config.json", tokenizer_config.to_string().into_bytes());
    block_on(Checkpoint::open(Arc::new(dir))).unwrap()
}

fn names() -> Value {
    json!({"bos_token": "<|begin|>", "eos_token": "<|eot_id|>", "tokenizer_class": "PreTrainedTokenizerFast"})
}

fn written(checkpoint: &Checkpoint, target: &dyn SinkDir) -> ConvertOutcome {
    block_on(async {
        let plan = plan_conversion(checkpoint, &ConvertOptions::new(TargetLayout::Gguf), &Silent).await?;
        convert(checkpoint, &plan, target, &Silent).await
    })
    .unwrap()
}

fn codec(checkpoint: &Checkpoint) -> HuggingFaceTokenizer {
    let bos = checkpoint.config().bos_token_id;
    block_on(HuggingFaceTokenizer::open(checkpoint.dir().as_ref(), bos)).unwrap()
}

/// Tokenizers, their tokenizer_config.json, and whether llama.cpp supports them.
fn cases() -> Vec<(&'static str, Value, Value, bool)> {
    let offsets =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
    let sequence = |steps: &[&Value]| json!({"type": "Sequence", "processors": steps});
    let roberta = json!({"type": "RobertaProcessing", "cls": ["<|begin|>", BOS], "sep": ["<|eot_id|>", EOT],
        "trim_offsets": true, "add_prefix_space": false});
    let bos = template(&[("<|begin|>", BOS)], &[]);
    let eos = template(&[], &[("<|eot_id|>", EOT)]);
    let other = template(&[("<|other|>", OTHER)], &[]);
    let twice = template(&[("<|begin|>", BOS), ("<|begin|>", BOS)], &[]);
    let mut cases = Vec::new();
    for (name, post_processor, in_llama_cpp) in [
        ("nothing", Value::Null, true),
        ("offsets", offsets.clone(), true),
        ("bos", bos.clone(), true),
        ("bos in a sequence", sequence(&[&offsets, &bos]), true),
        ("both", template(&[("<|begin|>", BOS)], &[("<|eot_id|>", EOT)]), true),
        ("both of two steps", sequence(&[&eos, &bos]), false),
        ("eos", eos, true),
        ("roberta", roberta, true),
        ("another", other, false),
        ("twice", twice, false),
    ] {
        for flags in [
            json!({}),
            json!({"add_bos_token": true}),
            json!({"add_bos_token": false, "add_eos_token": true}),
            json!({"tokenizer_class": "LlamaTokenizerFast"}),
        ] {
            let mut tokenizer = tokenizer();
            tokenizer["post_processor"] = post_processor.clone();
            let mut config = names();
            config.as_object_mut().unwrap().extend(flags.as_object().unwrap().clone());
            cases.push((name, tokenizer, config, in_llama_cpp));
        }
    }
    for (name, flag) in [("rstrip", "rstrip"), ("lstrip", "lstrip"), ("single word", "single_word")] {
        let mut tokenizer = tokenizer();
        tokenizer["added_tokens"][3][flag] = json!(true);
        cases.push((name, tokenizer, names(), false));
    }
    let mut normalized = tokenizer();
    normalized["added_tokens"][3]["normalized"] = json!(true);
    cases.push(("normalized without a normalizer", normalized, names(), true));
    cases
}

/// A text that begins with the BOS token, for which the report announces a second one.
fn is_excepted(text: &str, report: &ConvertOutcome) -> bool {
    let said = "a text that begins with `<|begin|>` itself gets a second one in llama.cpp";
    text.starts_with("<|begin|>") && report.notes.iter().any(|note| note == said)
}

#[test]
fn a_prompt_of_the_file_is_that_of_the_folder() {
    for (name, tokenizer, config, in_llama_cpp) in cases() {
        let original = folder(&tokenizer, &config, &json!({}));
        let target = MemorySinkDir::new("out");
        let report = written(&original, &target);
        assert_eq!(
            report.tokenizer_problem.is_none(),
            in_llama_cpp,
            "{name}: {:?}",
            report.tokenizer_problem
        );
        let said = report.notes.iter().any(|note| {
            note.starts_with("the file has no tokenizer: ") && note.contains("it carries the tokenizer.json")
        });
        assert_eq!(said, !in_llama_cpp, "{name}: {:?}", report.notes);
        let bytes = target.to_dir().get(FILE).unwrap().clone();
        let file = block_on(Checkpoint::open_gguf(Arc::new(MemorySource::new(FILE, bytes)))).unwrap();
        let (ours, theirs) = (codec(&file), codec(&original));
        for text in TEXTS.into_iter().filter(|text| !is_excepted(text, &report)) {
            assert_eq!(
                ours.encode_prompt(text).unwrap(),
                theirs.encode_prompt(text).unwrap(),
                "{name}, {config}: {text:?}"
            );
            assert_eq!(ours.encode(text).unwrap(), theirs.encode(text).unwrap(), "{name}: {text:?}");
        }
        let ends = |checkpoint: &Checkpoint| {
            let mut ends = checkpoint.config().eos_token_ids.clone();
            ends.sort_unstable();
            ends
        };
        assert_eq!(ends(&file), ends(&original), "{name}");
    }
}

#[test]
fn chats_of_the_file_are_those_of_the_folder() {
    let mut config = names();
    config["chat_template"] = json!([
        {"name": "tool_use", "template": "other"},
        {"name": "default", "template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"},
    ]);
    for tokenizer in [cases().remove(0).1, cases().pop().unwrap().1, {
        let mut tokenizer = tokenizer();
        tokenizer["added_tokens"][3]["rstrip"] = json!(true);
        tokenizer
    }] {
        let original = folder(&tokenizer, &config, &json!({}));
        let target = MemorySinkDir::new("out");
        written(&original, &target);
        let bytes = target.to_dir().get(FILE).unwrap().clone();
        let file = block_on(Checkpoint::open_gguf(Arc::new(MemorySource::new(FILE, bytes)))).unwrap();
        let messages = [json!({"role": "user", "content": "the"})];
        let found = codec(&file).apply_chat_template(&messages).unwrap();
        assert_eq!(found, codec(&original).apply_chat_template(&messages).unwrap());
        assert_eq!(found, "<|begin|>the<|eot_id|>");
    }
}

fn check(checkpoint: &Checkpoint) -> lowbit::Result<()> {
    let options = ConvertOptions::new(TargetLayout::Gguf);
    block_on(plan_conversion(checkpoint, &options, &Silent)).map(drop)
}

#[test]
fn models_that_llama_cpp_does_otherwise_are_refused() {
    for (changes, message) in [
        (json!({"hidden_act": "relu2"}), "`hidden_act` = `relu2`"),
        (
            json!({"model_type": "qwen2", "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),
            "rope type `llama3`",
        ),
        (json!({"model_type": "qwen3", "attention_bias": true}), "`attention_bias`"),
    ] {
        let checkpoint = folder(&tokenizer(), &names(), &changes);
        let error = check(&checkpoint).expect_err(message).to_string();
        assert!(error.contains(message), "expected {message:?} but found {error}");
    }
    for changes in [
        json!({"model_type": "mistral"}),
        json!({"attention_bias": true, "mlp_bias": true}),
        json!({"model_type": "qwen2"}),
        json!({"rope_scaling": {"type": "linear", "factor": 2.0}}),
    ] {
        check(&folder(&tokenizer(), &names(), &changes)).unwrap();
    }
}

#[test]
#[ignore = "needs Node: cargo xtask interop"]
fn interop_llama_cpp_makes_the_prompts_of_the_folder() {
    let place = tempfile::tempdir().unwrap();
    let mut cases: Vec<_> = cases().into_iter().filter(|(.., in_llama_cpp)| *in_llama_cpp).collect();
    let mut padded = tokenizer();
    for id in OTHER + 1..=2048 {
        let mut token = padded["added_tokens"][3].clone();
        token["id"] = json!(id);
        token["content"] = if id == 2048 { json!("<pad>") } else { json!(format!("<|reserved_{id}|>")) };
        padded["added_tokens"].as_array_mut().unwrap().push(token);
    }
    let mut templates = names();
    templates["chat_template"] =
        json!([{"name": "default", "template": "x"}, {"name": "tool_use", "template": "y"}]);
    cases.push(("a token without a row", padded, templates, true));
    let mut jobs = Vec::new();
    let mut originals = Vec::new();
    for (index, (name, tokenizer, config, _)) in cases.iter().enumerate() {
        let original = folder(tokenizer, config, &json!({"eos_token_id": [EOS, EOT, OTHER]}));
        let path = place.path().join(index.to_string());
        let report = written(&original, &FsSinkDir::create(&path).unwrap());
        assert!(report.tokenizer_problem.is_none(), "{name}: {:?}", report.tokenizer_problem);
        jobs.push(json!({"file": path.join(FILE), "texts": TEXTS, "around": 2048}));
        originals.push((*name, original, report));
    }
    let Some(answers) = llama_cpp::<Option<Around>>(&jobs) else { return };
    for ((name, original, report), answer) in originals.iter().zip(answers) {
        let answer = answer.unwrap_or_else(|| panic!("{name}: llama.cpp does not open the file"));
        assert_eq!(answer.ends, [EOS, EOT, OTHER], "{name}");
        let codec = codec(original);
        for (text, ids) in TEXTS.iter().zip(answer.ids) {
            if *name == "a token without a row" && text.contains("<pad>") {
                continue;
            }
            let mut prompt: Vec<u32> = answer.front.into_iter().chain(ids.iter().copied()).collect();
            prompt.extend(answer.behind);
            assert_eq!(codec.encode(text).unwrap(), ids, "{name}: {text:?}");
            if !is_excepted(text, report) {
                assert_eq!(codec.encode_prompt(text).unwrap(), prompt, "{name}: {text:?}");
            }
        }
    }
}
