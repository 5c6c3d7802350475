//! Continues a text, and writes it as it comes.
//!
//! `cargo run --release --example generate -- MODEL PROMPT`: a folder or a GGUF file, and the text to continue.

use lowbit::{GenerateOptions, LoadRequest, SamplerOptions};
use std::io::Write;

fn main() -> lowbit::Result<()> {
    let [model, prompt] = &std::env::args().skip(1).collect::<Vec<_>>()[..] else {
        eprintln!("expected MODEL PROMPT");
        std::process::exit(2);
    };
    let mut model = lowbit::open(model)?.load(&LoadRequest::default())?;
    eprintln!("on {}", model.device());

    let sampler = SamplerOptions::default().temperature(0.7).top_p(0.9).seed(1);
    let options = GenerateOptions::default().max_tokens(60).sampler(sampler).continue_prompt(true);
    print!("{prompt}");
    for piece in model.stream(prompt, &options)? {
        print!("{}", piece?.text);
        std::io::stdout().flush()?;
    }
    println!();
    Ok(())
}
