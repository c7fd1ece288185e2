//! Has the CRI validation suite of Kubernetes (`critest` of cri-tools) run against podway's runtime and
//! against containerd, each alone on a stage of its own, and writes what came of each spec side by side.

use anyhow::{Context as _, ensure};
use clap::Parser;
use podway_cluster::Program;
use podway_tests::cri::{Kind, Server, Stage, images};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Run critest against podway and containerd and write docs/conformance-cri.md.
#[derive(Parser)]
#[command(after_help = "Example:\n  podway-critest --only podway --focus 'Security Context'")]
struct Args {
    /// Only this server (podway or containerd).
    #[arg(long)]
    only: Option<String>,
    /// Only specs whose name matches.
    #[arg(long)]
    focus: Option<String>,
    /// Where the table is written; nowhere by default.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Further flags for critest.
    #[arg(last = true)]
    flags: Vec<String>,
}

/// What ginkgo's JSON report says, as far as it is read here.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    spec_reports: Option<Vec<Spec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_text: String,
    leaf_node_type: String,
    state: String,
    failure: Option<Failure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    message: Option<String>,
}

#[derive(Clone, Debug)]
struct Outcome {
    state: String,
    message: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let critest = Program::Critest.locate(&|line: &str| eprintln!("{line}")).await?;
    let work = tempfile::tempdir()?;
    let stage = Stage::set(&images::all(work.path()).await?).await?;
    let mut table: BTreeMap<String, BTreeMap<Kind, Outcome>> = BTreeMap::new();
    let mut versions = Vec::new();
    for kind in [Kind::Podway, Kind::Containerd] {
        if args.only.as_deref().is_some_and(|only| only != kind.name()) {
            continue;
        }
        let server = Server::start(&stage, kind).await?;
        let mut client = server.client().await?;
        let version = client.runtime.version(podway_cri::v1::VersionRequest::default()).await?;
        versions.push(format!("{} {}", kind.name(), version.into_inner().runtime_version));
        let report = stage.at(&format!("{}.json", kind.name()));
        let ran = run(&critest, &server, &report, &args).await;
        for (name, outcome) in read(&report)? {
            table.entry(name).or_default().insert(kind, outcome);
        }
        if let Some(lines) = std::env::var_os("PODWAY_CRITEST_LOG") {
            let to = PathBuf::from(lines).join(format!("{}.log", kind.name()));
            std::fs::copy(&server.log, &to).with_context(|| format!("writing {}", to.display()))?;
        }
        server.stop().await?;
        ran?;
    }
    let text = document(&table, &versions);
    println!("{text}");
    if let Some(out) = &args.out {
        std::fs::write(out, text).with_context(|| format!("writing {}", out.display()))?;
    }
    let worse: Vec<&String> = table
        .iter()
        .filter(|(_, by)| {
            let is = |kind, state: &str| by.get(&kind).is_some_and(|o: &Outcome| o.state == state);
            is(Kind::Containerd, "passed") && !is(Kind::Podway, "passed")
        })
        .map(|(name, _)| name)
        .collect();
    ensure!(worse.is_empty() || args.only.is_some(), "containerd passes and podway does not:\n{worse:#?}");
    Ok(())
}

/// Runs the suite; that specs fail is no error here, that nothing was reported is.
async fn run(critest: &Path, server: &Server, report: &Path, args: &Args) -> anyhow::Result<()> {
    let mut command = tokio::process::Command::new(critest);
    command
        .arg(format!("--runtime-endpoint={}", server.endpoint))
        .arg(format!("--image-endpoint={}", server.endpoint))
        .arg(format!("--ginkgo.json-report={}", report.display()))
        .arg("--ginkgo.no-color")
        .args(&args.flags);
    if let Some(focus) = &args.focus {
        command.arg(format!("--ginkgo.focus={focus}"));
    }
    command.stdin(Stdio::null()).stdout(std::io::stderr()).kill_on_drop(true);
    let status = command.status().await.context("running critest")?;
    eprintln!("critest on {}: {status}", server.kind.name());
    ensure!(report.is_file(), "critest wrote no report");
    Ok(())
}

fn read(report: &Path) -> anyhow::Result<Vec<(String, Outcome)>> {
    let text = std::fs::read(report)?;
    let reports: Vec<Report> = serde_json::from_slice(&text).context("the report of ginkgo")?;
    let specs = reports.into_iter().flat_map(|r| r.spec_reports.unwrap_or_default());
    let told = specs.filter(|s| s.leaf_node_type == "It").filter_map(|spec| {
        let mut name = spec.container_hierarchy_texts.unwrap_or_default();
        name.push(spec.leaf_node_text);
        let name = name.join(" ").replace("[k8s.io] ", "");
        let message = spec.failure.and_then(|f| f.message).unwrap_or_default();
        // What --focus left out, and benchmarks, which are another command's.
        let left_out = spec.state == "skipped" && message.is_empty();
        (!left_out).then_some((name, Outcome { state: spec.state, message }))
    });
    Ok(told.collect())
}

/// Why a spec fails or is skipped, where it is known: by a part of its name.
const CAUSES: [(&str, &str); 6] = [
    ("MaskedPaths", "the shell of the image, Debian's busybox, has the masked ls built in"),
    ("image with digest", "the image that is named by digest is only in its own registry, out of reach here"),
    ("[nri]", "needs an NRI socket"),
    ("NRI", "needs an NRI socket"),
    ("AppArmor", "this kernel has no AppArmor"),
    ("selinux", "this kernel has no SELinux"),
];

fn document(table: &BTreeMap<String, BTreeMap<Kind, Outcome>>, versions: &[String]) -> String {
    let mut text = String::from("# CRI conformance\n\n");
    let count = |kind, state: &str| {
        let is = |by: &BTreeMap<Kind, Outcome>| by.get(&kind).is_some_and(|o| o.state == state);
        table.values().filter(|by| is(by)).count()
    };
    let line = |text: &mut String, kind: Kind| {
        let [passed, failed, skipped] = ["passed", "failed", "skipped"].map(|s| count(kind, s));
        // Writing to a String does not fail.
        let _ = writeln!(text, "| {} | {passed} | {failed} | {skipped} |", kind.name());
    };
    let _ = writeln!(
        text,
        "`just critest` has the validation suite of cri-tools run against {} on one machine, each alone,\n\
         with the same images, network plugins and runc, and writes this page.\n",
        versions.join(" and "),
    );
    text.push_str("| | passed | failed | skipped |\n|---|---|---|---|\n");
    line(&mut text, Kind::Podway);
    line(&mut text, Kind::Containerd);
    text.push_str("\n| spec | podway | containerd | cause |\n|---|---|---|---|\n");
    for (name, by) in table {
        let state = |kind| by.get(&kind).map_or("-", |o| o.state.as_str());
        let (ours, theirs) = (state(Kind::Podway), state(Kind::Containerd));
        let known = CAUSES.iter().find(|(part, _)| name.contains(part)).map(|(_, cause)| *cause);
        let said = || {
            let of = if ours == "passed" { Kind::Containerd } else { Kind::Podway };
            let message = by.get(&of).map_or("", |o| o.message.as_str());
            let flat = message.split_whitespace().collect::<Vec<_>>().join(" ");
            flat.replace('|', "\\|").chars().take(160).collect::<String>()
        };
        let cause = match (ours, theirs) {
            ("passed", "passed") => String::new(),
            _ => known.map_or_else(said, str::to_owned),
        };
        let _ = writeln!(text, "| {} | {ours} | {theirs} | {cause} |", name.replace('|', "\\|"));
    }
    text
}
