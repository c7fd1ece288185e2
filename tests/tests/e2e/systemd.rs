//! Nodes whose cgroups are systemd's, as nearly everybody's are: this suite once more, a few cases of it, in a
//! container in which a real systemd is booted (`booted`), with a control plane and two nodes of its own.

#[path = "../../../src/runtime/tests/support/booted.rs"]
mod booted;

use anyhow::Context as _;
use podway_cluster::Program;
use podway_tests::cluster::SYSTEMD;
use podway_tests::namespace::Ns;
use std::path::PathBuf;

/// What is run there: a life with everything, limits, the kernel's kills, restarts of both daemons, and a stock
/// kubelet that asks our runtime for its driver.
const CASES: [&str; 6] = [
    "create::limits_are_in_the_cgroup",
    "create::with_init_config_secret_and_a_shared_volume",
    "failures::out_of_memory",
    "restarts::of_the_agent",
    "restarts::of_the_runtime",
    "kubelet::on_our_runtime",
];

pub async fn nodes_of_its_own(_: Ns) -> anyhow::Result<()> {
    // What programs there are is known here; there is no network to get them from in there.
    let mut directories = Vec::new();
    for program in
        [Program::Etcd, Program::KubeApiserver, Program::Runc, Program::CniPlugins, Program::Kubelet]
    {
        let path = program.locate(&|line| eprintln!("{line}")).await?;
        directories.extend(path.parent().map(PathBuf::from));
    }
    let home = std::env::var("HOME").context("HOME")?;
    directories.push(PathBuf::from(&home).join(".cache/podway"));
    directories.retain(|d| d.is_dir());
    directories.sort();
    directories.dedup();
    let run = tokio::task::spawn_blocking(move || {
        booted::run(&CASES, &[(SYSTEMD, "1"), ("HOME", &home)], &directories)
    });
    let said = run.await?.map_err(anyhow::Error::msg)?;
    println!("{said}");
    Ok(())
}
