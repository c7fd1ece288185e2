//! Our scheduler's decisions beside a stock kube-scheduler's, case by case.
//!
//! [`generate`] makes random clusters of bare objects, and pods, on a control plane of its own. Each pod is
//! given to the stock scheduler, and decided by ours on what the API server says: [`oracle`] reads what the
//! former did and, from its log, every node's score by plugin; [`ours`] has the latter; [`driver`] compares
//! the feasible nodes, each score, the chosen node (one of the best), the message byte by byte, and who
//! would be evicted. Both ask the same extender ([`judge`]) about some of the pods, and have the same [`profiles`].
//! What is not compared is in docs/scheduler-parity.md. In the end ours runs as the stock one's [`shadow`].

pub mod driver;
pub mod families;
pub mod generate;
pub mod judge;
pub mod oracle;
pub mod ours;
pub mod profiles;
pub mod random;
pub mod shadow;

use anyhow::Context as _;
use driver::{Driver, Report};
use judge::Judge;
use oracle::Stock;
use podway_cluster::{Program, UpOptions, down, process, state::State, up};
use std::path::Path;
use std::time::Duration;

/// Runs so many cases from a seed on a control plane in `dir`, and takes it down again.
///
/// # Errors
/// When one of the programs does not answer; a difference is in the report.
pub async fn run(dir: &Path, seed: u64, cases: usize) -> anyhow::Result<Report> {
    let progress = |line: &str| eprintln!("{line}");
    let program = Program::KubeScheduler.locate(&progress).await?;
    let state_dir = dir.join("state");
    let options =
        UpOptions { state_dir: state_dir.clone(), control_plane_only: true, ..UpOptions::default() };
    let cluster = up(options, progress).await?;
    let result = async {
        // It would taint, bind and delete by itself what is to stay as the case has it.
        let state = State::load(&cluster.layout)?.context("the state of the control plane")?;
        let managers = state.processes.iter().filter(|(name, _)| name.contains("controller-manager"));
        for (_, record) in managers {
            process::stop(record, Duration::from_secs(5)).await?;
        }
        let log = cluster.layout.log("kube-scheduler");
        let (kubeconfig, judge) = (cluster.layout.admin_kubeconfig(), Judge::start().await?);
        let config = dir.join("kube-scheduler.json");
        std::fs::write(&config, judge.configuration(&kubeconfig).to_string())?;
        let stock = Stock::start(&program, (&kubeconfig, &config), &log)?;
        let driver = Driver::new(cluster.client.clone(), &stock, judge.extender()?).await?;
        let mut report = driver.run(seed, cases).await?;
        report.metrics = stock.metrics().await?;
        report.shadowed = shadow::beside(&cluster.client, dir).await?;
        Ok(report)
    }
    .await;
    down(&state_dir, progress).await?;
    result
}

impl Report {
    /// What was compared, as a table.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out = format!(
            "{} cases, {} differences; {} were put again, {} pods were not taken by the API server\n",
            self.cases,
            self.differences.len(),
            self.again,
            self.refused
        );
        for ((plugin, what), cases) in &self.by {
            out.push_str(&format!("{plugin} {what}: {cases} cases\n"));
        }
        out
    }
}
