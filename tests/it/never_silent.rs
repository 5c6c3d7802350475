//! Every setting of a checkpoint is honoured as in transformers, or refused by name. The folders are like published ones.

use crate::golden::{self, Golden};
use crate::support::synthetic;
use crate::support::{load, load_checkpoint, logits, max_distance, on_disk};
use crate::terminal::{arg, copy_of_tale, edit_json, edit_safetensors, lowbit, short_text, split, tale};
use half::{bf16, f16};
use lowbit::ErrorCode;
use lowbit::internals::format::source::MemoryDir;
use lowbit::internals::model::Checkpoint;
use lowbit::internals::model::names::Linear;
use lowbit::internals::quant::QuantizedTensor;
use lowbit::internals::task::block_on;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// A golden case as a folder.
fn folder(case: &str) -> (Golden, MemoryDir) {
    let name = format!("{case}/config.json");
    let (_, golden, config) = golden::cases().into_iter().find(|(found, ..)| *found == name).unwrap();
    let dir = synthetic::checkpoint(case, &config, &golden.tensors, golden.a);
    (golden, dir)
}

/// The folder with changed weights or a changed header.
fn with_weights(dir: &MemoryDir, edit: impl FnOnce(&mut Value, &mut Vec<u8>)) -> MemoryDir {
    let (mut header, mut data) = split(dir.get("model.safetensors").unwrap());
    edit(&mut header, &mut data);
    dir.clone().with("model.safetensors", crate::terminal::join(&header, &data))
}

fn with_config(dir: &MemoryDir, edit: impl FnOnce(&mut Value)) -> MemoryDir {
    let mut config: Value = serde_json::from_slice(dir.get("config.json").unwrap()).unwrap();
    edit(&mut config);
    dir.clone().with("config.json", config.to_string().into_bytes())
}

fn all_logits(dir: MemoryDir, golden: &Golden) -> Vec<Vec<f32>> {
    logits(&mut load(Arc::new(dir)), &golden.tokens, golden.tokens.len())
}

fn refused(dir: MemoryDir, code: ErrorCode, words: &[&str]) {
    let error = block_on(Checkpoint::open(Arc::new(dir))).err().expect(words[0]);
    assert_eq!(error.code(), code, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{error} does not say {word}");
    }
}

/// Appends a copy of the embedding under the head's name.
fn store_head(header: &mut Value, data: &mut Vec<u8>, change: impl FnOnce(&mut [u8])) {
    let embedding = header["model.embed_tokens.weight"].clone();
    let offsets = |index: usize| embedding["data_offsets"][index].as_u64().unwrap() as usize;
    let mut head = data[offsets(0)..offsets(1)].to_vec();
    change(&mut head);
    let start = data.len();
    data.extend(head);
    header["lm_head.weight"] = embedding.clone();
    header["lm_head.weight"]["data_offsets"] = json!([start, data.len()]);
}

/// transformers 5 and vLLM use a stored head that differs from the tied embedding.
#[test]
fn a_stored_head_is_used_although_the_config_ties_it() {
    let (golden, tied) = folder("qwen2-tied");
    let last_byte = |head: &mut [u8]| head[3] ^= 0x80;
    let own = with_weights(&tied, |header, data| store_head(header, data, last_byte));
    let untied = with_config(&own, |config| config["tie_word_embeddings"] = json!(false));
    let expected = all_logits(untied, &golden);
    assert_eq!(all_logits(own.clone(), &golden), expected);
    assert!(max_distance(&expected, &all_logits(tied.clone(), &golden)) > 0.01);
    let checkpoint = block_on(Checkpoint::open(Arc::new(own))).unwrap();
    assert!(!checkpoint.config().tie_word_embeddings);
    assert!(checkpoint.warnings()[0].contains("lm_head.weight"), "{:?}", checkpoint.warnings());

    // A copy is not a separate head: it would be loaded and written twice.
    let copy = with_weights(&tied, |header, data| store_head(header, data, |_| {}));
    let checkpoint = block_on(Checkpoint::open(Arc::new(copy))).unwrap();
    assert!(checkpoint.config().tie_word_embeddings && checkpoint.warnings().is_empty());
}

/// Outputs of such a model keep the head.
#[test]
fn a_stored_head_comes_into_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (model, quantized) = (folder.path().join("model"), folder.path().join("quantized"));
    copy_of_tale(&model);
    edit_safetensors(&model.join("model.safetensors"), |header, data| {
        store_head(header, data, |head| {
            head.as_chunks_mut::<2>().0.iter_mut().for_each(|value| value[1] ^= 0x80)
        });
    });
    lowbit(["quantize", &arg(&model), "-o", &arg(&quantized), "--bits", "8"]).done();
    let (header, _) = split(&fs::read(quantized.join("model.safetensors")).unwrap());
    assert!(header.get("lm_head.weight").is_some());
    let config: Value = serde_json::from_slice(&fs::read(quantized.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["tie_word_embeddings"], false);
}

/// Embedding models are saved without the prefix `model.`.
#[test]
fn tensor_names_may_lack_the_prefix() {
    let (golden, dir) = folder("qwen3");
    let expected = all_logits(dir.clone(), &golden);
    let renamed = with_weights(&dir, |header, _| {
        let entries = header.as_object().unwrap().clone();
        *header = entries
            .into_iter()
            .map(|(name, entry)| (name.strip_prefix("model.").map_or(name.clone(), str::to_owned), entry))
            .collect::<serde_json::Map<_, _>>()
            .into();
    });
    assert!(split(renamed.get("model.safetensors").unwrap()).0.get("norm.weight").is_some());
    assert_eq!(all_logits(renamed, &golden), expected);
    let inside = with_weights(&dir, |header, _| {
        let entry = header.as_object_mut().unwrap().remove("model.embed_tokens.weight").unwrap();
        header["language_model.model.embed_tokens.weight"] = entry;
    });
    refused(
        inside,
        ErrorCode::InvalidCheckpoint,
        &["language_model.model.embed_tokens.weight", "another one"],
    );
}

#[test]
fn a_model_without_a_head_is_no_language_model() {
    let (_, tied) = folder("qwen2-tied");
    let untied = with_config(&tied, |config| config["tie_word_embeddings"] = json!(false));
    refused(untied.clone(), ErrorCode::UnsupportedModel, &["lm_head.weight", "tie_word_embeddings"]);
    let silent =
        with_config(&tied, |config| _ = config.as_object_mut().unwrap().remove("tie_word_embeddings"));
    refused(silent, ErrorCode::UnsupportedModel, &["lm_head.weight"]);
    let classifier = with_weights(&untied, |header, data| {
        store_head(header, data, |_| {});
        let entry = header.as_object_mut().unwrap().remove("lm_head.weight").unwrap();
        header["score.weight"] = entry;
    });
    refused(classifier, ErrorCode::UnsupportedModel, &["score.weight"]);
}

/// Folders of other kinds, and the message for each.
#[test]
fn a_folder_of_another_kind_is_called_by_its_name() {
    let (_, model) = folder("llama");
    let without = |file: &str| {
        let mut dir = model.clone();
        dir.remove(file);
        dir
    };
    let text = |text: &str| text.as_bytes().to_vec();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    let adapter = text(r#"{"base_model_name_or_path": "org/base"}"#);
    let weights = "model.safetensors";
    let cases: Vec<(MemoryDir, ErrorCode, &[&str])> = vec![
        (
            model.clone().with(weights, text(pointer)),
            ErrorCode::InvalidCheckpoint,
            &["model.safetensors", "Git LFS", "git lfs pull"],
        ),
        (
            model.clone().with(weights, text("<!DOCTYPE html><html></html>")),
            ErrorCode::InvalidCheckpoint,
            &["model.safetensors", "an HTML page"],
        ),
        (
            model.clone().with("config.json", text(pointer)),
            ErrorCode::InvalidCheckpoint,
            &["config.json", "Git LFS"],
        ),
        (
            model.clone().with("generation_config.json", text("<html></html>")),
            ErrorCode::InvalidCheckpoint,
            &["generation_config.json", "HTML"],
        ),
        (
            model.clone().with("adapter_config.json", adapter.clone()),
            ErrorCode::UnsupportedModel,
            &["LoRA adapter"],
        ),
        (
            MemoryDir::new("m").with("adapter_config.json", adapter),
            ErrorCode::NotFound,
            &["a LoRA adapter", "`org/base`"],
        ),
        (
            MemoryDir::new("m").with("refs/main", text("abc\n")),
            ErrorCode::NotFound,
            &["hub's cache", "`snapshots/abc`"],
        ),
        (
            without(weights).with("pytorch_model.bin", vec![0]),
            ErrorCode::NotFound,
            &["pytorch_model.bin", "pickles"],
        ),
        (without(weights).with("onnx/model_q4.onnx", vec![0]), ErrorCode::NotFound, &["an ONNX export"]),
        (without(weights).with("tf_model.h5", vec![0]), ErrorCode::NotFound, &["TensorFlow"]),
        (
            without(weights).with("consolidated.00.pth", vec![0]),
            ErrorCode::NotFound,
            &["consolidated.00.pth"],
        ),
        (
            without(weights).with("weights.safetensors", vec![0]),
            ErrorCode::NotFound,
            &["`weights.safetensors`"],
        ),
        (MemoryDir::new("m").with("small.gguf", vec![0]), ErrorCode::NotFound, &["`small.gguf` itself"]),
        (MemoryDir::new("m").with("model_index.json", vec![0]), ErrorCode::NotFound, &["diffusers"]),
        (MemoryDir::new("m"), ErrorCode::NotFound, &["no config.json"]),
    ];
    for (dir, code, words) in cases {
        refused(dir, code, words);
    }
    let more = model.clone().with("additional_chat_templates/tool_use.jinja", text("{{ messages }}"));
    let opened = block_on(Checkpoint::open(Arc::new(more))).unwrap();
    assert!(opened.warnings()[0].contains("`tool_use.jinja`"), "{:?}", opened.warnings());
    // An interrupted upload leaves an empty file, which transformers treats as missing.
    block_on(Checkpoint::open(Arc::new(model.with("generation_config.json", text("\n"))))).unwrap();
}

/// Python's JSON has NaN and infinities. Only a reader that needs such a number refuses it.
#[test]
fn nan_in_a_config_is_refused_only_where_a_number_is_needed() {
    let (_, model) = folder("llama");
    let config = String::from_utf8(model.get("config.json").unwrap().to_vec()).unwrap();
    let harmless =
        config.replacen('{', "{\"hidden_dropout_prob\": NaN, \"task_specific_params\": [0.0, -Infinity],", 1);
    block_on(Checkpoint::open(Arc::new(model.clone().with("config.json", harmless.into_bytes())))).unwrap();
    let broken = config.replace("\"rms_norm_eps\": 1e-06", "\"rms_norm_eps\": NaN");
    assert_ne!(broken, config);
    refused(
        model.with("config.json", broken.into_bytes()),
        ErrorCode::InvalidCheckpoint,
        &["config.json", "NaN"],
    );
}

/// An unknown key is refused, unless it is allowed by name. Then the output's record names it, and the output opens by
/// itself.
#[test]
fn an_unknown_key_is_ignored_only_if_it_is_allowed() {
    let scratch = tempfile::tempdir().unwrap();
    for (file, key) in [
        ("config.json", "logit_scale"),
        ("config.json", "rope_parameters.stretch"),
        ("generation_config.json", "logit_scale"),
        ("tokenizer_config.json", "do_lower_case"),
    ] {
        let (model, output) = (scratch.path().join("model"), scratch.path().join("output"));
        copy_of_tale(&model);
        let path = model.join(file);
        let bytes = fs::read(&path).unwrap_or_else(|_| b"{}".to_vec());
        let mut json: Value = serde_json::from_slice(&bytes).unwrap();
        match key.split_once('.') {
            Some((object, name)) => json[object][name] = json!(0.5),
            None => json[key] = json!(0.5),
        }
        fs::write(&path, json.to_string()).unwrap();
        let text = short_text(scratch.path());
        let of_text = |model: &Path| ["perplexity".to_owned(), arg(model), "--text".to_owned(), text.clone()];
        let ran = lowbit(of_text(&model));
        assert_eq!(ran.code, 2, "{key}: {}", ran.stderr);
        assert!(ran.stderr.contains(&format!("{file}: unknown key `{key}` = 0.5")), "{}", ran.stderr);

        let allowed = ["--allow-unknown".to_owned(), key.to_owned()];
        let ran = lowbit(of_text(&model).into_iter().chain(allowed.clone())).done();
        assert!(ran.stderr.contains(&format!("the unknown key `{key}` is ignored")), "{}", ran.stderr);
        let quantize = ["quantize".to_owned(), arg(&model), "-o".to_owned(), arg(&output)];
        lowbit(quantize.into_iter().chain(allowed)).done();
        let record: Value =
            serde_json::from_slice(&fs::read(output.join("quantization_config.json")).unwrap()).unwrap();
        assert_eq!(record["source"]["ignored_keys"], json!([key]));
        lowbit(of_text(&output)).done();
        fs::remove_dir_all(&output).unwrap();
        fs::remove_dir_all(&model).unwrap();
    }
}

/// A change of a checkpoint folder.
type Edit = fn(&Path);

/// Validation rejects what is not read, and tokenizers and templates that differ, though perplexity is good.
#[test]
fn validation_rejects_checkpoints_that_are_not_read_completely_and_alike() {
    let scratch = tempfile::tempdir().unwrap();
    let (original, quantized) = (scratch.path().join("original"), scratch.path().join("int8"));
    copy_of_tale(&original);
    lowbit(["quantize", &arg(&original), "-o", &arg(&quantized), "--bits", "8"]).done();
    let more_tensors: Edit = |folder| {
        let path = folder.join("model.safetensors");
        let (mut header, data) = split(&fs::read(&path).unwrap());
        let norm = header["model.norm.weight"].clone();
        for name in ["model.layers.0.mlp.router.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"] {
            header[name] = norm.clone();
        }
        // Two more copies of the final norm, at the end of the file.
        let range: Vec<usize> = serde_json::from_value(norm["data_offsets"].clone()).unwrap();
        let mut data = data.to_vec();
        for name in ["model.layers.0.mlp.router.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"] {
            let start = data.len();
            data.extend_from_within(range[0]..range[1]);
            header[name]["data_offsets"] = json!([start, data.len()]);
        }
        fs::write(path, crate::terminal::join(&header, &data)).unwrap();
    };
    let lower_case: Edit = |folder| {
        let path = folder.join("tokenizer.json");
        edit_json(&path, |json| json["normalizer"] = json!({"type": "Lowercase"}));
    };
    let template: Edit = |folder| {
        fs::write(folder.join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    };
    let text = short_text(scratch.path());
    let validate = || {
        let args = ["validate", &arg(&original), &arg(&quantized), "--text", &text, "--json"];
        let ran = lowbit([&args[..], &["--speed-rounds", "0", "--max-tokens", "2"]].concat());
        (ran.code, ran.json())
    };
    let (code, report) = validate();
    assert_eq!((code, &report["reading"]), (0, &json!([])), "{report:#}");
    for (edit, kind, says) in [
        (more_tensors, "unread_tensor", "mlp.router.weight"),
        (lower_case, "tokenizer", "a text is "),
        (template, "chat_template", "only the quantized model has a chat template"),
    ] {
        let kept = scratch.path().join("kept");
        fs::create_dir(&kept).unwrap();
        for entry in fs::read_dir(&quantized).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, kept.join(path.file_name().unwrap())).unwrap();
        }
        edit(&quantized);
        let (code, report) = validate();
        assert_eq!(code, 1, "{kind}: {report:#}");
        let [problem] = &report["reading"].as_array().unwrap()[..] else { panic!("{report:#}") };
        assert_eq!(problem["kind"], kind);
        assert!(problem["detail"].as_str().unwrap().contains(says), "{problem}");
        let criterion = report["criteria"].as_array().unwrap().last().unwrap();
        assert_eq!(
            (&criterion["name"], &criterion["status"]),
            (&json!("reading_problems"), &json!("failed"))
        );
        assert!(report["recommendation"].as_str().unwrap().contains(says), "{report:#}");
        fs::remove_dir_all(&quantized).unwrap();
        fs::rename(&kept, &quantized).unwrap();
    }
}

/// `inspect --strict` names what has no effect, what is missing, and what is assumed.
#[test]
fn inspect_strict_lists_what_is_ignored_and_defaulted() {
    let scratch = tempfile::tempdir().unwrap();
    copy_of_tale(scratch.path());
    edit_json(&scratch.path().join("config.json"), |config| {
        config["attention_dropout"] = json!(0.5);
        config["sliding_window"] = json!(16);
        config.as_object_mut().unwrap().shift_remove("rms_norm_eps");
    });
    fs::write(scratch.path().join("generation_config.json"), r#"{"temperature": 0.6, "eos_token_id": 2}"#)
        .unwrap();
    let ran = lowbit(["inspect", &arg(scratch.path()), "--strict", "--json"]).done();
    let report = ran.json();
    let has = |list: &str, note: &str| {
        assert!(report[list].as_array().unwrap().iter().any(|found| found == note), "{note} in {report:#}");
    };
    has("ignored", "config.json: `attention_dropout` = 0.5");
    has("ignored", "config.json: `sliding_window` = 16");
    has("ignored", "generation_config.json: `temperature` = 0.6");
    has("defaulted", "config.json: `rms_norm_eps` = 9.999999974752427e-7");
    let plain = lowbit(["inspect", &arg(scratch.path()), "--json"]).done().json();
    assert!(plain["ignored"].is_null() && plain["architecture"] == "llama");
}

/// Keys of quantized folders that change the weights' meaning, and accepted spellings.
#[test]
fn a_quantization_config_says_nothing_that_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let gptq = folder.path().join("gptq");
    lowbit(["quantize", &arg(tale()), "-o", &arg(&gptq), "--bits", "4", "--format", "gptq"]).done();
    let open = |edit: &dyn Fn(&mut Value)| {
        let copied = folder.path().join("copy");
        _ = fs::remove_dir_all(&copied);
        crate::terminal::copy(&gptq, &copied);
        edit_json(&copied.join("config.json"), |config| edit(&mut config["quantization_config"]));
        block_on(Checkpoint::open(on_disk(copied)))
    };
    let tokens: Vec<u32> = (5..40).collect();
    let run = |checkpoint: Checkpoint| logits(&mut load_checkpoint(&checkpoint), &tokens, tokens.len());
    let expected = run(open(&|_| {}).unwrap());
    for (key, value) in [
        ("rotation", json!("hadamard")),
        ("adapter", json!({"name": "lora"})),
        ("act_bits", json!(8)),
        ("data_type", json!("mx_fp")),
        ("made_up", json!(1)),
    ] {
        let error = open(&|config| config[key] = value.clone()).err().expect(key);
        assert_eq!(error.code(), ErrorCode::UnsupportedFormat, "{error}");
        assert!(error.to_string().contains(key), "{error} does not name {key}");
    }
    let auto_round = |packing: &'static str| {
        move |config: &mut Value| {
            let sym = config["sym"].clone();
            *config = json!({
                "quant_method": "auto-round", "bits": 4, "group_size": config["group_size"], "sym": sym,
                "packing_format": packing, "data_type": "int", "autoround_version": "0.13.0", "iters": 200,
                "extra_config": {"lm_head": {"bits": 16}},
            });
        }
    };
    type Edit<'a> = &'a dyn Fn(&mut Value);
    let same: [(&str, Edit<'_>); 5] = [
        ("capitals", &|config| config["quant_method"] = json!("GPTQ")),
        ("a float", &|config| config["bits"] = json!(4.0)),
        ("nothing said", &|config| config["rotation"] = json!(null)),
        ("auto-round", &auto_round("auto_round:auto_gptq")),
        // Symmetric zero points reveal their version.
        ("auto-round of another version", &auto_round("auto_round:gptqmodel")),
    ];
    for (what, edit) in same {
        assert_eq!(run(open(edit).unwrap_or_else(|error| panic!("{what}: {error}"))), expected, "{what}");
    }
}

/// transformers runs BitNet's layers in the type of their scale, so a folder has one floating-point type.
#[test]
fn ternary_folders_have_one_floating_point_type() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    for (dtype, expected, large) in
        [("F16", "F16", false), ("F32", "F16", false), ("BF16", "BF16", false), ("F32", "F32", true)]
    {
        _ = fs::remove_dir_all(&source);
        copy_of_tale(&source);
        in_dtype(&source, dtype, large);
        let output = folder.path().join(format!("{dtype}-{large}"));
        lowbit(["quantize", &arg(&source), "-o", &arg(&output), "--method", "ternary"]).done();
        let (header, _) = split(&fs::read(output.join("model.safetensors")).unwrap());
        for (name, entry) in header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__") {
            let found = entry["dtype"].as_str().unwrap();
            assert!(found == expected || found == "U8", "{dtype}: {name} is {found}");
        }
        let config: Value = serde_json::from_slice(&fs::read(output.join("config.json")).unwrap()).unwrap();
        let name = match expected {
            "F16" => "float16",
            "BF16" => "bfloat16",
            _ => "float32",
        };
        let said = config.get("dtype").or_else(|| config.get("torch_dtype")).unwrap();
        assert_eq!(said, name, "{dtype}");
        // To floating point and back to the same codes.
        let (dense, again) = (folder.path().join("dense"), folder.path().join("again"));
        lowbit(["dequantize", &arg(&output), "-o", &arg(&dense)]).done();
        lowbit(["quantize", &arg(&dense), "-o", &arg(&again), "--from-metadata"]).done();
        let codes = |folder: &Path| {
            let (header, data) = split(&fs::read(folder.join("model.safetensors")).unwrap());
            let entries = header.as_object().unwrap().clone().into_iter();
            let packed = entries.filter(|(_, entry)| entry["dtype"] == "U8");
            packed
                .map(|(name, entry)| {
                    let at = |index: usize| entry["data_offsets"][index].as_u64().unwrap() as usize;
                    (name, data[at(0)..at(1)].to_vec())
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(codes(&again), codes(&output), "{dtype}");
    }
}

/// The shipped model's weights in another type. With `large`, one value of a norm is beyond f16.
fn in_dtype(folder: &Path, dtype: &str, large: bool) {
    edit_safetensors(&folder.join("model.safetensors"), |header, data| {
        let mut converted = Vec::new();
        for (name, entry) in
            header.as_object_mut().unwrap().iter_mut().filter(|(name, _)| *name != "__metadata__")
        {
            assert_eq!(entry["dtype"], "F16", "{name}");
            let at = |index: usize| entry["data_offsets"][index].as_u64().unwrap() as usize;
            let values =
                data[at(0)..at(1)].as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32());
            let start = converted.len();
            for (index, value) in values.enumerate() {
                let value = if large && index == 0 && name == "model.norm.weight" { 1e6 } else { value };
                match dtype {
                    "F32" => converted.extend(value.to_le_bytes()),
                    "BF16" => converted.extend(bf16::from_f32(value).to_le_bytes()),
                    _ => converted.extend(f16::from_f32(value).to_le_bytes()),
                }
            }
            entry["dtype"] = json!(dtype);
            entry["data_offsets"] = json!([start, converted.len()]);
        }
        *data = converted;
    });
}

/// Packed master weights are the same model.
#[test]
fn master_weights_are_packed_for_good() {
    let (_, online) = folder("bitnet-online");
    let folder = tempfile::tempdir().unwrap();
    let (source, output) = (folder.path().join("online"), folder.path().join("packed"));
    fs::create_dir(&source).unwrap();
    for name in online.names() {
        fs::write(source.join(name), online.get(name).unwrap().as_slice()).unwrap();
    }
    lowbit(["quantize", &arg(&source), "-o", &arg(&output), "--method", "ternary"]).done();
    let (online, packed) = (
        block_on(Checkpoint::open(Arc::new(online))).unwrap(),
        block_on(Checkpoint::open(on_disk(&output))).unwrap(),
    );
    for linear in Linear::ALL {
        let module = linear.module(1);
        let read = |checkpoint: &Checkpoint| {
            block_on(checkpoint.layout().read_packed(checkpoint.store(), &module)).unwrap()
        };
        let (before, after) = (read(&online), read(&packed));
        let codes = |tensor: &QuantizedTensor| tensor.affine().unwrap().codes().to_vec();
        assert_eq!(codes(&before), codes(&after), "{module}");
        assert_eq!(f16::from_f32(before.scale(0, 0)).to_f32(), after.scale(0, 0), "{module}");
    }
    for refused in [["--method", "rtn"], ["--sparsity-threshold", "0.1"]] {
        let mut args =
            vec!["quantize".to_owned(), arg(&source), "-o".to_owned(), arg(folder.path().join("x"))];
        if refused[0] != "--method" {
            args.extend(["--method".to_owned(), "ternary".to_owned()]);
        }
        args.extend(refused.map(str::to_owned));
        let ran = lowbit(&args);
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains("ternary in every forward pass"), "{}", ran.stderr);
    }
}
