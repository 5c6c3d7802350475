//! Quantizes a checkpoint to 4 bits by GPTQ, and says whether the result is good.
//!
//! `cargo run --release --example quantize -- MODEL OUTPUT CALIBRATION HELD_OUT`: a folder or a GGUF file, the folder to
//! write, a text to learn from, and one that the models have not seen.

use lowbit::{
    Bits, CalibrationRequest, Granularity, Limits, MeasureOptions, Method, Progress, QuantizeRequest,
    ValidateRequest,
};

fn main() -> lowbit::Result<()> {
    let [model, output, calibration, held_out] = &std::env::args().skip(1).collect::<Vec<_>>()[..] else {
        eprintln!("expected MODEL OUTPUT CALIBRATION HELD_OUT");
        std::process::exit(2);
    };
    let original = lowbit::open(model)?.with_control(|progress: &Progress<'_>| {
        eprint!("\r{}: {} of {}   ", progress.phase, progress.done, progress.total);
    });

    let request = QuantizeRequest::default()
        .method(Method::Gptq)
        .bits(Bits::Four)
        .group_size(Granularity::Group(32))
        .calibration(CalibrationRequest::of(std::fs::read_to_string(calibration)?).samples(16));
    let written = original.quantize(output, &request)?;
    for note in &written.notes {
        eprintln!("\nnote: {note}");
    }
    println!("{:.2} bits a weight in {output}", written.record.bits_per_weight);

    // Speed is left out: this is about quality.
    let measure =
        MeasureOptions::default().speed_rounds(0).limits(Limits::default().max_perplexity_increase(0.03));
    let request = ValidateRequest::of(std::fs::read_to_string(held_out)?).measure(measure);
    let report = written.checkpoint.validate(&original, &request)?;
    eprintln!();
    println!("perplexity {:.3} for {:.3}", report.perplexity.quantized, report.perplexity.original);
    println!("{}", report.recommendation);
    std::process::exit(i32::from(!report.accepted));
}
