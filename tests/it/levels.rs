//! Graded questions: the generators, the curriculum, and the level in the learning zone.

use crate::terminal::{CommandResult, arg, llama_config, lowbit, tale};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The files of a part.
fn sudokus(folder: &Path, part: &str, levels: std::ops::RangeInclusive<usize>) -> Vec<String> {
    levels.map(|level| arg(folder.join(format!("{part}-{level:02}.jsonl")))).collect()
}

fn rows(file: &str) -> Vec<Value> {
    fs::read_to_string(file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn tasks_are_files_of_which_none_shares_a_question_with_another() {
    let folder = tempfile::tempdir().unwrap();
    let made = |task: &str, seed: &str, to: &PathBuf| -> CommandResult {
        let counts = ["--train", "300", "--test", "50", "--levels", "1", "2", "10"];
        lowbit([&["tasks", task, "-o", &arg(to), "--seed", seed, "--json"][..], &counts].concat()).done()
    };
    for task in ["sudoku", "sort"] {
        let (first, second) = (folder.path().join(task), folder.path().join(format!("{task}-again")));
        let said = made(task, "0", &first).json();
        assert_eq!(said["files"].as_array().unwrap().len(), 6, "{said:#}");
        made(task, "7", &second);
        let mut parts = ["train", "test"].map(|_| BTreeSet::new());
        for (part, prompts) in ["train", "test"].into_iter().zip(&mut parts) {
            for folder in [&first, &second] {
                for level in [1, 2, 10] {
                    for row in rows(&sudokus(folder, part, level..=level)[0]) {
                        assert_eq!(row["level"], level);
                        assert!(row["answer"].as_str().unwrap().ends_with('\n'));
                        prompts.insert(row["prompt"].as_str().unwrap().to_owned());
                    }
                }
            }
        }
        assert!(parts[0].len() > 1500 && parts[1].len() > 250, "other seeds give other questions");
        assert!(parts[0].is_disjoint(&parts[1]), "{task}");
    }
    let ran = lowbit(["tasks", "sort", "-o", &arg(folder.path().join("few")), "--levels", "1"]).done();
    assert!(ran.stderr.contains("level 1: no more than "), "{}", ran.stderr);
    let ran = lowbit(["tasks", "chess", "-o", "x"]);
    assert!(ran.code == 2 && ran.stderr.contains("sudoku"), "{}", ran.stderr);
}

#[test]
fn files_of_levels_that_make_no_sense_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("level.jsonl");
    for (text, expected) in [
        ("", "expected a level but found none"),
        ("{\"prompt\": \"a\"}", "level.jsonl: line 1: expected a text under `answer`"),
        (
            "{\"prompt\": \"a\", \"answer\": \"b\"}\n{\"answer\": \"b\"}",
            "level.jsonl: line 2: expected a text under `prompt`",
        ),
        (
            "{\"prompt\": \"a\", \"answer\": \"\"}",
            "level.jsonl: line 1: expected an answer but found no token",
        ),
        (
            "{\"prompt\": \"a\", \"answer\": \"b\", \"level\": \"x\"}",
            "level.jsonl: line 1: expected `level` to be",
        ),
        ("{\"prompt\": \"a\"", "level.jsonl: line 1: "),
    ] {
        fs::write(&file, text).unwrap();
        let ran = lowbit(["assess", &arg(tale()), "--levels", &arg(&file)]);
        assert!(ran.code == 2 && ran.stderr.contains(expected), "{text}: {}", ran.stderr);
    }
    let long = json!({ "prompt": "once upon a time ".repeat(400), "answer": "b" }).to_string();
    fs::write(&file, long).unwrap();
    let ran = lowbit(["assess", &arg(tale()), "--levels", &arg(&file)]);
    assert!(ran.code == 2 && ran.stderr.contains("level 1: question 1: "), "{}", ran.stderr);
}

#[test]
fn a_curriculum_takes_in_the_next_level_when_one_is_mastered() {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("sort");
    lowbit(["tasks", "sort", "-o", &arg(&files), "--test", "100", "--levels", "1", "2", "3"]).done();
    let metrics = arg(folder.path().join("metrics.jsonl"));
    let train = |held_out: Vec<String>, to: &str| {
        let size = ["--context", "48", "--batch-tokens", "1024", "--steps", "150", "--evaluate-every", "10"];
        let more = ["--learning-rate", "0.004", "--metrics", &metrics, "--curriculum"];
        let args =
            ["train".to_owned(), arg(llama_config(folder.path(), 258, [64, 176, 4, 4])), "-o".to_owned()];
        let args = args.into_iter().chain([arg(folder.path().join(to)), "--data".to_owned()]);
        let args = args.chain(sudokus(&files, "train", 1..=3)).chain(held_out);
        lowbit(args.chain(size.into_iter().chain(more).map(str::to_owned)))
    };
    let held_out =
        |last| ["--held-out".to_owned()].into_iter().chain(sudokus(&files, "test", 1..=last)).collect();
    for (held_out, expected) in
        [(Vec::new(), "--held-out"), (held_out(2), "level 3: expected held-out questions but found none")]
    {
        let ran = train(held_out, "refused");
        assert!(ran.code == 2 && ran.stderr.contains(expected), "{}", ran.stderr);
    }

    let ran =
        train(held_out(3).into_iter().chain(["--field", "text"].map(str::to_owned)).collect(), "refused");
    assert!(ran.code == 2 && ran.stderr.contains("--field"), "{}", ran.stderr);
    let blocks = ["--bits", "2", "--group-size", "16", "--block-steps", "1"].map(str::to_owned);
    let ran = train(held_out(3).into_iter().chain(blocks).collect(), "refused");
    assert!(ran.code == 2 && ran.stderr.contains("give no curriculum"), "{}", ran.stderr);

    train(held_out(3), "model").done();
    let record = fs::read(folder.path().join("model/training_record.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    assert_eq!(record["parameters"]["curriculum"], true);
    let lines = rows(&metrics);
    let looks: Vec<&Value> = lines.iter().filter(|line| line["event"] == "level").collect();
    let mut expected = 1;
    for look in &looks {
        let mastered = look["accuracy"].as_f64().unwrap() > 0.8;
        assert_eq!(look["level"], expected, "{look}");
        let next = if mastered && expected < 3 { json!(expected + 1) } else { Value::Null };
        assert_eq!(look["next"], next, "{look}");
        expected += u64::from(!next.is_null());
    }
    // Measured: level 2 is added after 80 steps and level 3 after 140.
    assert!(looks.len() > 15 && expected >= 2, "{looks:#?}");
}

/// Most rounds of training. Accuracies depend on the instruction set. If no level is in the learning zone after a round, one
/// comes into it in a later round.
const ROUNDS: usize = 8;

#[test]
fn a_model_that_learned_five_levels_is_at_the_edge_of_what_it_can_do() {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("sudoku");
    lowbit(["tasks", "sudoku", "-o", &arg(&files), "--test", "500"]).done();
    let (learned, asked) = (sudokus(&files, "train", 1..=5), sudokus(&files, "test", 1..=10));
    let train = |from: &Path, steps: &str, rate: &str, to: &Path| {
        let size = ["--context", "48", "--batch-tokens", "1024", "--steps", steps, "--learning-rate", rate];
        let args = ["train".to_owned(), arg(from), "-o".to_owned(), arg(to), "--data".to_owned()];
        let args = args.into_iter().chain(learned.clone());
        lowbit(args.chain(size.map(str::to_owned))).done();
    };
    let assess = |model: &Path, more: &[&str]| {
        let args = ["assess".to_owned(), arg(model), "--levels".to_owned()].into_iter();
        lowbit(args.chain(asked.clone()).chain(more.iter().map(|&word| word.to_owned()))).done()
    };
    let mut model = folder.path().join("model-0");
    train(&llama_config(folder.path(), 258, [64, 176, 4, 4]), "500", "0.004", &model);
    for round in 1..=ROUNDS {
        let said = assess(&model, &["--json", "--noise-questions", "0"]).json();
        println!("{said}");
        if said["verdict"] == "at the edge" {
            break;
        }
        let next = folder.path().join(format!("model-{round}"));
        train(&model, "60", "0.002", &next);
        model = next;
    }

    let figures = arg(folder.path().join("figures.jsonl"));
    let said = assess(&model, &["--json", "--metrics", &figures]).json();
    let levels = said["levels"].as_array().unwrap();
    assert_eq!(levels.len(), 10);
    let figure = |level: &Value, name: &str| level["accuracy"][name].as_f64().unwrap();
    // Levels whose intervals are below that of the previously counted level.
    let mut apart: Vec<&Value> = Vec::new();
    for level in levels {
        assert_eq!(figure(level, "questions"), 500.0);
        if apart.last().is_none_or(|last| figure(level, "high") < figure(last, "low")) {
            apart.push(level);
        }
    }
    assert!(apart.len() >= 3, "{said:#}");
    let at_edge = |level: &&Value| (0.70..=0.80).contains(&figure(level, "share"));
    let highest = levels.iter().rfind(at_edge).unwrap_or_else(|| panic!("{said:#}"));
    assert_eq!((&said["chosen"], &said["monotonic"]), (&highest["level"], &true.into()), "{said:#}");
    let noise = highest["gradient_noise"].as_f64().unwrap();
    assert!(noise > 0.0 && levels.iter().all(|level| level["gradient_noise"].is_number()), "{said:#}");
    let lines = rows(&figures);
    let found =
        |name: &str| lines.iter().find(|line| line["name"] == name).map(|line| line["value"].as_f64());
    assert_eq!(found("edge_of_chaos_assessment_completed"), Some(Some(1.0)));
    assert_eq!(found("edge_of_chaos_optimal_level"), Some(highest["level"].as_f64()));
    assert_eq!(found("gradient_variance_optimal"), Some(Some(noise)));

    // A quantized model is assessed too, without gradients.
    let small = folder.path().join("small");
    let args = ["quantize", &arg(&model), "-o", &arg(&small), "--bits", "8"];
    lowbit(args).done();
    let quantized = assess(&small, &["--json"]).json();
    let shares = |said: &Value| -> Vec<f64> {
        said["levels"].as_array().unwrap().iter().map(|level| figure(level, "share")).collect()
    };
    // Measured: they differ by at most 0.006.
    assert!(shares(&said).iter().zip(shares(&quantized)).all(|(a, b)| (a - b).abs() < 0.05));
    assert!(quantized["levels"][0]["gradient_noise"].is_null());
    let text = assess(&small, &[]).stdout;
    assert!(
        text.contains("no gradients: a quantized checkpoint has none") && text.contains(" of 500 "),
        "{text}"
    );
}
