//! The Rust façade, used like a dependent program.

use crate::support::fixture;
use lowbit::io::{ByteSink, FileSource, FsDir, FsSinkDir, MemorySinkDir, SinkDir};
use lowbit::{
    Bits, CalibrationRequest, Checkpoint, Control, ConvertRequest, DequantizeRequest, ErrorCode, Format,
    GenerateOptions, Granularity, LoadRequest, Message, Method, Model, PerplexityRequest, Progress,
    QuantizeRequest,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn original() -> Checkpoint {
    lowbit::open(fixture("tale-llama")).unwrap()
}

fn four_bits() -> QuantizeRequest {
    QuantizeRequest::default().bits(Bits::Four).group_size(Granularity::Group(32))
}

fn text(chars: usize) -> String {
    std::fs::read_to_string(fixture("tale-llama").join("heldout.txt")).unwrap().chars().take(chars).collect()
}

fn on_cpu() -> LoadRequest {
    LoadRequest::default().device(lowbit::DeviceRequest::default().device(lowbit::DeviceChoice::Cpu))
}

fn said(model: &mut Model) -> String {
    model.generate("Once upon a time", &GenerateOptions::default().max_tokens(12)).unwrap().text
}

#[test]
fn models_and_checkpoints_go_to_other_threads() {
    fn sent<T: Send>() {}
    fn shared<T: Sync>() {}
    sent::<Checkpoint>();
    shared::<Checkpoint>();
    sent::<Model>();
}

#[test]
fn a_checkpoint_goes_through_every_form_and_says_the_same() {
    let out = tempfile::tempdir().unwrap();
    let place = |name: &str| out.path().join(name);
    let heard = Arc::new(AtomicUsize::new(0));
    let count = heard.clone();
    let original = original().with_control(move |_: &Progress<'_>| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let int4 = original.quantize(place("int4"), &four_bits()).unwrap();
    assert!(heard.load(Ordering::Relaxed) > 0, "progress is heard");
    assert!((4.4..4.6).contains(&int4.record.bits_per_weight));
    let int4 = int4.checkpoint;
    assert!(int4.is_quantized() && int4.bytes() < original.bytes());
    let mut model = int4.load(&on_cpu()).unwrap();
    let expected = said(&mut model);
    let again = |checkpoint: Checkpoint| said(&mut checkpoint.load(&on_cpu()).unwrap());
    assert_eq!(again(lowbit::open(place("int4")).unwrap()), expected);

    let gptq = int4.convert(place("gptq"), &ConvertRequest::default().format(Format::Gptq)).unwrap();
    assert_eq!(again(gptq.checkpoint), expected);
    // A GGUF file by its name, and from memory.
    let gguf = int4.convert(place("tale.gguf"), &ConvertRequest::default().format(Format::Gguf)).unwrap();
    assert_eq!(again(gguf.checkpoint), expected);
    let source = Arc::new(FileSource::open(place("tale.gguf")).unwrap());
    assert_eq!(again(Checkpoint::from_gguf(source).unwrap()), expected);
    let memory = MemorySinkDir::new("memory");
    assert_eq!(again(original.quantize_into(&memory, &four_bits()).unwrap().checkpoint), expected);

    let request = DequantizeRequest::default().texts(text(800));
    let (dense, agreement) = int4.dequantize(place("dense"), Some(&original), &request).unwrap();
    assert!(!dense.checkpoint.is_quantized());
    let agreement = agreement.unwrap();
    assert!(agreement.quantized_dequantized >= agreement.required && agreement.retention.unwrap() > 0.8);

    let of_text = PerplexityRequest::of(text(2000));
    let (before, after) = (
        original.load(&on_cpu()).unwrap().perplexity(&of_text).unwrap(),
        model.perplexity(&of_text).unwrap(),
    );
    assert!(before.tokens == after.tokens && before.perplexity < after.perplexity * 1.02);
}

#[test]
fn pieces_make_the_text_and_a_prompt_is_not_a_chat() {
    let mut model = original().load(&on_cpu()).unwrap();
    let options = GenerateOptions::default().max_tokens(12);
    let whole = model.generate("Once upon a time", &options).unwrap();
    let mut pieces = model.stream("Once upon a time", &options).unwrap();
    let first = pieces.next().unwrap().unwrap();
    let rest = pieces.finish().unwrap();
    assert_eq!(first.text + &rest.text, whole.text);
    assert_eq!(rest.token_ids, whole.token_ids, "those of all pieces");
    let error = model.chat(&[Message::user("Hello")], &options).err().unwrap();
    assert_eq!(error.code(), ErrorCode::NotFound, "the checkpoint has no template: {error}");
}

/// Cancels the work after so many reports.
struct Until(AtomicUsize);

impl Control for Until {
    fn progress(&self, _: &Progress<'_>) {
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
    }

    fn cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

#[test]
fn a_calibration_that_was_stopped_goes_on_and_gives_the_same() {
    let out = tempfile::tempdir().unwrap();
    let place = |name: &str| out.path().join(name);
    let calibration = CalibrationRequest::of(text(9000)).samples(4);
    let request = four_bits().method(Method::Gptq).calibration(calibration);
    let whole = original().quantize(place("whole"), &request).unwrap();
    assert!(whole.notes.iter().any(|note| note.contains("noisy")), "few tokens are said: {:?}", whole.notes);

    let kept = place("kept");
    let stopped = original().with_resume(&kept).with_control(Until(AtomicUsize::new(12)));
    let error = stopped.quantize(place("gone-on"), &request).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Cancelled, "{error}");
    assert!(kept.exists(), "what is done is kept");
    original().with_resume(&kept).quantize(place("gone-on"), &request).unwrap();
    assert!(!kept.exists(), "and goes when the work is done");
    let weights = |name: &str| std::fs::read(place(name).join("model.safetensors")).unwrap();
    assert!(weights("gone-on") == weights("whole"));
}

#[test]
fn what_is_not_ours_is_never_overwritten() {
    let out = tempfile::tempdir().unwrap();
    let theirs = out.path().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    std::fs::write(theirs.join("config.json"), "{\"model_type\": \"llama\"}").unwrap();
    let original = original();
    let refused = |error: lowbit::Error| {
        assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
        assert!(error.to_string().contains("lowbit did not write"), "{error}");
    };
    refused(original.quantize(&theirs, &four_bits()).unwrap_err());
    assert_eq!(std::fs::read_dir(&theirs).unwrap().count(), 1);

    // A custom sink cannot bypass the protection, because it reports its contents.
    let memory = MemorySinkDir::new("memory");
    put(&memory, "model.safetensors", b"somebody's");
    refused(original.quantize_into(&memory, &four_bits()).unwrap_err());
    assert_eq!(memory.to_dir().get("model.safetensors").unwrap().as_slice(), b"somebody's");

    // The source is protected too, however it was opened.
    let (folder, int4) = (fixture("tale-llama"), out.path().join("int4"));
    let written = original.quantize(&int4, &four_bits()).unwrap().checkpoint;
    let weights = std::fs::read(int4.join("model.safetensors")).unwrap();
    let opened = Checkpoint::from_dir(Arc::new(FsDir::open(&int4).unwrap())).unwrap();
    let gptq = ConvertRequest::default().format(Format::Gptq);
    for error in [
        original.quantize(&folder, &four_bits()).unwrap_err(),
        written.convert(&int4, &gptq).unwrap_err(),
        opened.convert(&int4, &gptq).unwrap_err(),
        opened.dequantize(&int4, None, &DequantizeRequest::default()).unwrap_err(),
        original.quantize_into(&FsSinkDir::at(&folder), &four_bits()).unwrap_err(),
    ] {
        assert!(error.to_string().contains("the output folder is the source"), "{error}");
    }
    assert!(std::fs::read(int4.join("model.safetensors")).unwrap() == weights);
}

fn put(memory: &MemorySinkDir, file: &str, bytes: &[u8]) {
    lowbit::internals::task::block_on(async {
        let mut sink: Box<dyn ByteSink> = memory.create(file).await.unwrap();
        sink.write(bytes).await.unwrap();
        sink.finish().await.unwrap();
    });
}

#[test]
fn mistakes_are_named() {
    let original = original();
    let out = tempfile::tempdir().unwrap();
    for (request, expected) in [
        (four_bits().method(Method::Gptq), "method gptq needs calibration texts"),
        (four_bits().calibration(CalibrationRequest::of("text")), "method rtn takes no calibration texts"),
        (QuantizeRequest::default().method(Method::Ternary).bits(Bits::Two), "ternary weights have no bits"),
    ] {
        let error = original.quantize(out.path().join("out"), &request).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert!(!out.path().join("out").exists());
    let error = lowbit::open(out.path().join("nothing")).unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotFound);
    let error = original.validate(&original, &lowbit::ValidateRequest::default()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidArgument, "without a text: {error}");
}
