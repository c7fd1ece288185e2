//! `docs/metrics.md` and `docs/conditions.md` are made from the code: the registries, the enum of phases, the constants of
//! `src/api/src/reasons.rs`, and the words that the recorder is given where a phase ends.
//! `just pages` (PODWAY_BLESS=1) writes them anew.

use super::{file, registry, text};
use anyhow::{Context as _, ensure};
use podway_flow::Phase;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

/// That the page is what the code makes of it, or that it is so from now on.
fn fresh(page: &str, made: &str) -> anyhow::Result<()> {
    if std::env::var_os("PODWAY_BLESS").is_some() {
        std::fs::write(file(page), made)?;
    }
    ensure!(text(page).unwrap_or_default() == made, "{page} is stale: run `just pages`");
    Ok(())
}

#[test]
fn the_metrics_page_is_fresh() -> anyhow::Result<()> {
    let mut page = String::from(
        "# Metrics\n\nMade from the registries by `just pages`. Prometheus text or OpenMetrics, by `Accept`; in the older text a counter's\n\
         name ends in `_total`, as in queries. No label holds a pod's, a container's or an image's name. Where each part serves them, and who may\n\
         ask: [README](../README.md#configuration-and-metrics). Rules, alerts, dashboard: `manifests/monitoring/`.\n\n\
         The agent also has the kubelet's `/metrics/resource`, `/metrics/cadvisor` and `/metrics/probes`, with the kubelet's names and labels.\n",
    );
    for part in ["scheduler", "agent", "runtime"] {
        write!(page, "\n## {part}\n\n| metric | kind | labels | what |\n|---|---|---|---|\n")?;
        let mut metrics: Vec<_> = registry::all()?.into_iter().filter(|m| m.part == part).collect();
        metrics.sort_by(|a, b| a.name.cmp(&b.name));
        for m in metrics {
            let name = if m.kind == "counter" { format!("{}_total", m.name) } else { m.name.clone() };
            let labels: Vec<String> = m.labels.iter().map(|l| format!("`{l}`")).collect();
            let help = m.help.trim_end_matches('.').replace('|', "\\|");
            writeln!(page, "| `{name}` | {} | {} | {help} |", m.kind, labels.join(" "))?;
        }
    }
    fresh("docs/metrics.md", &page)
}

/// The doc comment's first line of each variant, or constant, that `pattern` finds the name of.
fn documented(source: &str, name: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut doc = String::new();
    for line in source.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("/// ") {
            if !doc.is_empty() {
                doc.push(' ');
            }
            doc.push_str(text);
        } else {
            if let Some(name) = name(line).filter(|_| !doc.is_empty()) {
                found.push((name, std::mem::take(&mut doc)));
            }
            doc.clear();
        }
    }
    found
}

/// The words by which the phases end, by the crate that says so and how.
fn ends() -> anyhow::Result<BTreeMap<(&'static str, &'static str), BTreeSet<String>>> {
    fn files(dir: &Path, all: &mut Vec<std::path::PathBuf>) -> std::io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            match path.is_dir() {
                true => files(&path, all)?,
                false => all.extend(Some(path).filter(|p| p.extension().is_some_and(|e| e == "rs"))),
            }
        }
        Ok(())
    }
    let upstreams = text("src/api/src/reasons.rs")?;
    let mut found: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    for part in ["scheduler", "agent", "runtime"] {
        let mut all = Vec::new();
        files(&file(&format!("src/{part}/src")), &mut all)?;
        for path in all.iter().filter(|p| !p.ends_with("tests.rs")) {
            let source = std::fs::read_to_string(path)?;
            // Tests end phases as they like.
            let source = source.split("#[cfg(test)]").next().unwrap_or_default();
            // What the agent only notes, record(PHASE, subject, start, end, "Reason"). A word of Kubernetes' own is a failure,
            // and has its row further below.
            for rest in source.split("record(Phase::").skip(1) {
                let word = rest.lines().next().and_then(|call| call.rsplit('"').nth(1)).unwrap_or("Running");
                if word != "Running" && !upstreams.contains(&format!("\"{word}\"")) {
                    found.entry((part, "succeed")).or_default().insert(word.to_owned());
                }
            }
            for how in ["succeed", "skip", "fail"] {
                for rest in source.split(&format!(".{how}(\"")).skip(1) {
                    let word = rest.split('"').next().context("a word")?;
                    found.entry((part, how)).or_default().insert(word.to_owned());
                }
            }
        }
    }
    Ok(found)
}

#[test]
fn the_conditions_page_is_fresh() -> anyhow::Result<()> {
    let mut page = String::from(
        "# Conditions and reasons\n\nMade from the code by `just pages`.\n\n## Conditions\n\nOn the Pod, and under the bare name on the `PodFlow`. `True`: done, or nothing to do. `False`: it failed, and the\n\
         message says how. `Unknown`: it runs, has not begun, or nobody recorded it. `kubectl wait --for=condition=podway.dev/NAME pod/POD` works for each.\n\n\
         | condition | steps | what |\n|---|---|---|\n",
    );
    let source = text("src/flow/src/phase.rs")?;
    let variants = documented(&source, |line| line.strip_suffix(',').map(str::to_owned));
    for phase in Phase::ALL {
        let (_, what) = variants.iter().find(|(n, _)| n == phase.name()).context("a documented phase")?;
        // Its steps have a column of their own.
        let what =
            what.split_once(": ").filter(|(s, _)| s.starts_with("Step")).map_or(what.as_str(), |(_, w)| w);
        let steps: Vec<String> = phase.steps().iter().map(u8::to_string).collect();
        writeln!(page, "| `{}` | {} | {what} |", phase.condition_type(), steps.join(", "))?;
    }
    page.push_str(
        "| `podway.dev/Stuck` | | True while the start has passed the limit of a phase; the message names it |\n\
         | `podway.dev/Terminating` | | True for a pod whose end has taken a second; the message says what it waits for |\n\
         | `Succeeded` | | on the `PodFlow` alone: True with `Ready`, False with the first phase that failed |\n\
         \n`PodScheduled`, `PodReadyToStartContainers`, `Initialized`, `ContainersReady` and `Ready` are Kubernetes' own, with its reasons.\n\
         \n## Reasons of phases\n\n`NotBegun` and `NotRecorded` stand where there is no record.\n\n\
         | by | done | nothing to do | failed |\n|---|---|---|---|\n",
    );
    let ends = ends()?;
    ensure!(ends.len() == 8, "{ends:?}");
    for part in ["scheduler", "agent", "runtime"] {
        let words = |how| {
            let all = ends.get(&(part, how)).into_iter().flatten().map(|w| format!("`{w}`"));
            all.collect::<Vec<_>>().join(" ")
        };
        writeln!(page, "| {part} | {} | {} | {} |", words("succeed"), words("skip"), words("fail"))?;
    }
    page.push_str("\n## Reasons of Kubernetes' conditions, events and container states\n\nUpstream's, to the letter.\n\n| reason | where |\n|---|---|\n");
    let constants = documented(&text("src/api/src/reasons.rs")?, |line| {
        let (_, value) = line.strip_prefix("pub const ")?.split_once("= \"")?;
        value.strip_suffix("\";").map(str::to_owned)
    });
    ensure!(constants.len() > 20, "{constants:?}");
    for (reason, what) in constants {
        writeln!(page, "| `{reason}` | {} |", what.trim_end_matches('.'))?;
    }
    fresh("docs/conditions.md", &page)
}
