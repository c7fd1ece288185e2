//! `podway replay FILE`: the decisions of a recorded run once more.

use super::{Hinted, Output};
use anyhow::Context as _;
use podway_scheduler::replay::{Report, replay};
use serde::Serialize;
use std::fmt::Write as _;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

/// Make the decisions of a recorded run again and say whether they come out the same; no cluster is asked.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  podway scheduler --record run.jsonl        # until Ctrl-C\n  podway replay run.jsonl"
)]
pub(crate) struct Args {
    /// The file that podway scheduler --record wrote.
    file: PathBuf,
    /// The form.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// How many differences are told.
const MOST: usize = 5;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    decisions: usize,
    placed: usize,
    differences: usize,
    broken_off: bool,
    first: Vec<Difference>,
}

#[derive(Serialize)]
struct Difference {
    line: usize,
    pod: String,
    recorded: serde_json::Value,
    now: serde_json::Value,
}

impl Answer {
    fn of(report: Report) -> Self {
        let first = report.differences.iter().take(MOST).cloned();
        let first = first.map(|d| Difference { line: d.line, pod: d.pod, recorded: d.recorded, now: d.now });
        Answer {
            decisions: report.decisions,
            placed: report.placed,
            differences: report.differences.len(),
            broken_off: report.broken_off,
            first: first.collect(),
        }
    }
}

fn text(answer: &Answer) -> String {
    let Answer { decisions, placed, differences, broken_off, first } = answer;
    let mut out = format!("{decisions} decisions, {placed} placed, {differences} came out otherwise\n");
    if *broken_off {
        out.push_str("the last line breaks off: the recorder was killed\n");
    }
    for d in first {
        let pod = super::one_line(&d.pod);
        let _ = writeln!(out, "line {}, {pod}:\n  recorded {}\n  now      {}", d.line, d.recorded, d.now);
    }
    out
}

/// Runs the command; an error when a decision came out otherwise.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let name = args.file.display();
    let hint = "podway scheduler --record FILE writes one";
    let file = File::open(&args.file).with_context(|| Hinted::new(format!("opening {name}"), hint))?;
    let report = replay(BufReader::new(file))
        .with_context(|| Hinted::new(format!("{name} cannot be replayed"), hint))?;
    let answer = Answer::of(report);
    args.output.print(&answer, text)?;
    anyhow::ensure!(answer.differences == 0, "{} decisions came out otherwise", answer.differences);
    Ok(())
}
