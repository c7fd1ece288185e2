//! `podway-differential [--cases N] [--seed S]`: see `podway_tests::differential`. Ends with 1 when the two
//! schedulers differ.

use clap::Parser;
use podway_tests::differential;
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "Compares our scheduler's decisions with those of a stock kube-scheduler")]
struct Args {
    /// How many pods.
    #[arg(long, default_value_t = 2000)]
    cases: usize,
    /// Where the random clusters begin.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let dir = tempfile::tempdir()?;
    let report = differential::run(dir.path(), args.seed, args.cases).await?;
    print!("{}", report.table());
    Ok(if report.differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
