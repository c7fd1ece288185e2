//! Runs Kubernetes' own end-to-end suite against a cluster of podway that it brings up and takes down:
//! one node, our scheduler for all pods. Says what failed, and writes docs/conformance.md.

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use podway_cluster::{Program, images};
use podway_tests::cluster::{Cluster, built, run};
use podway_tests::conformance::Set;
use podway_tests::conformance::page::Page;
use podway_tests::conformance::report::{self, Outcome, Verdict};
use podway_tests::conformance::services;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};
use tokio::process::Command;

/// Run Kubernetes' own end-to-end suite against podway.
///
/// Fails when a spec fails that docs/conformance.md says passes.
#[derive(Parser)]
#[command(
    after_help = "Example:\n  podway-conformance --set node --write\n  podway-conformance --focus 'InPlace Resize' --keep"
)]
struct Args {
    /// Which specs.
    #[arg(long, value_enum, default_value = "node")]
    set: Set,
    /// Of the set only those whose name matches; may be repeated.
    #[arg(long, value_name = "REGEX")]
    focus: Vec<String>,
    /// Write the page.
    #[arg(long, conflicts_with = "focus")]
    write: bool,
    /// Leave the cluster up; the next run finds it.
    #[arg(long)]
    keep: bool,
    /// Leave the images alone, for a cluster that was kept.
    #[arg(long)]
    no_images: bool,
    /// How many specs run at once. They mostly sleep.
    #[arg(long, default_value_t = 24)]
    procs: u16,
    /// How long they may take in all, in minutes.
    #[arg(long, value_name = "MINUTES", default_value_t = 15)]
    timeout: u64,
    /// How often a spec may be tried; it passes when one try does.
    #[arg(long, value_name = "N", default_value_t = 1)]
    flake_attempts: u16,
    /// Where the cluster is kept.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/podway/conformance")]
    state_dir: PathBuf,
    /// The page.
    #[arg(long, value_name = "FILE", default_value = "docs/conformance.md")]
    page: PathBuf,
    /// Where the suite's output and reports go.
    #[arg(long, value_name = "DIR", default_value = "target/conformance")]
    report_dir: PathBuf,
}

/// `podway up` may build the control plane.
const UP: Duration = Duration::from_secs(1200);

fn say(line: &str) {
    eprintln!("{line}");
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = tokio::runtime::Runtime::new().context("starting").and_then(|r| r.block_on(all(&args)));
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The whole run; false when a spec broke.
async fn all(args: &Args) -> anyhow::Result<bool> {
    let known = match std::fs::read_to_string(&args.page) {
        Ok(text) => Page::read(&text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Page::default(),
        Err(e) => return Err(e).context(format!("reading {}", args.page.display())),
    };
    let begun = Instant::now();
    let outcomes = suite(args).await;
    if !args.keep {
        Cluster::down(&args.state_dir).await?;
    }
    let outcomes = outcomes?;
    let failed: Vec<&Outcome> = outcomes.iter().filter(|o| matches!(o.verdict, Verdict::Failed(_))).collect();
    for outcome in &failed {
        if let Verdict::Failed(why) = &outcome.verdict {
            println!("FAILED {} ({} s)\n       {why}", outcome.spec, outcome.seconds);
        }
    }
    let passed = outcomes.iter().filter(|o| o.verdict == Verdict::Passed).count();
    let (all, took) = (outcomes.len(), begun.elapsed().as_secs());
    println!("{} of {all} specs of {} pass, {} fail; {took} s", passed, args.set.name(), failed.len());
    ensure!(all > 0, "no spec was run");
    let broken = known.broken(args.set, &outcomes);
    for outcome in &broken {
        println!("BROKEN {}: {} says that it passes", outcome.spec, args.page.display());
    }
    // As libtest has it, for tests/run, which adds up: what fails as the page says is no failure of this run.
    let word = if broken.is_empty() { "ok" } else { "FAILED" };
    let left = all - passed - broken.len();
    println!("test result: {word}. {passed} passed; {} failed; {left} ignored", broken.len());
    if args.write {
        let mut page = known.clone();
        page.take(args.set, &outcomes);
        std::fs::write(&args.page, page.text()?).with_context(|| args.page.display().to_string())?;
        println!("{} is written", args.page.display());
    }
    Ok(broken.is_empty())
}

/// Brings up what is needed and runs the suite.
async fn suite(args: &Args) -> anyhow::Result<Vec<Outcome>> {
    let (test, ginkgo) = (Program::E2eTest.locate(&say).await?, Program::Ginkgo.locate(&say).await?);
    let mut up = Command::new(built("podway")?);
    let nodes = args.set.nodes().to_string();
    up.args(["up", "--no-demo", "--default-scheduler", "--nodes", &nodes, "--state-dir"])
        .arg(&args.state_dir);
    let with_services = args.set == Set::Network;
    if with_services {
        up.arg("--cluster-dns").arg(services::DNS.to_string());
    }
    let answer = run(&mut up, "", UP).await?;
    ensure!(answer.code == 0, "podway up ended with {}:\n{}", answer.code, answer.err);
    let cluster = Cluster::attach(&args.state_dir, args.set.nodes()).await?;
    let registry = cluster.registry()?.to_string();
    if !args.no_images {
        images::e2e::push(&registry, &say).await?;
    }
    if with_services {
        images::services::push(&registry, &say).await?;
        services::install(&cluster).await?;
    }
    std::fs::create_dir_all(&args.report_dir).context("making the report directory")?;
    let dir = std::fs::canonicalize(&args.report_dir).context("the report directory")?;
    let report = dir.join("report.json");
    match std::fs::remove_file(&report) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => bail!("{}: {e}", report.display()),
        _ => {}
    }
    let mut command = Command::new(ginkgo);
    command
        .arg("run")
        .arg(format!("--procs={}", args.procs))
        .arg(format!("--timeout={}m", args.timeout))
        .arg(format!("--flake-attempts={}", args.flake_attempts))
        .arg(format!("--label-filter={}", args.set.labels()))
        .args(args.set.skip().map(|skip| format!("--skip={skip}")))
        .args(args.focus.iter().map(|focus| format!("--focus={focus}")))
        .args(["--no-color", "--silence-skips", "--json-report=report.json"])
        .arg(format!("--output-dir={}", dir.display()))
        .arg(test)
        .arg("--")
        .args(["--provider=skeleton", "--disable-log-dump"])
        .arg(format!("--num-nodes={nodes}"))
        .arg(format!("--kubeconfig={}", cluster.layout.admin_kubeconfig().display()))
        .arg(format!("--kubectl-path={}", cluster.kubectl.display()))
        .arg(format!("--report-dir={}", dir.display()));
    ginkgo_run(command, &dir, args).await?;
    let text = std::fs::read(&report)
        .with_context(|| format!("the suite left no report; see {}", dir.join("output.log").display()))?;
    report::read(&text)
}

/// Runs ginkgo, its output into a file. That specs fail is no error.
async fn ginkgo_run(mut command: Command, dir: &Path, args: &Args) -> anyhow::Result<()> {
    let path = dir.join("output.log");
    let log = std::fs::File::create(&path).with_context(|| path.display().to_string())?;
    let again = log.try_clone().context("the output's file")?;
    say(&format!("running the specs of {}; their output goes to {}", args.set.name(), path.display()));
    command.current_dir(dir).stdin(Stdio::null()).stdout(log).stderr(again).kill_on_drop(true);
    // ginkgo ends by itself at its own limit; it is given some time to tell what it has.
    let limit = Duration::from_secs(args.timeout * 60 + 120);
    let mut child = command.spawn().context("starting ginkgo")?;
    match tokio::time::timeout(limit, child.wait()).await {
        Ok(status) => drop(status.context("waiting for ginkgo")?),
        Err(_) => bail!("ginkgo did not end; see {}", path.display()),
    }
    Ok(())
}
