//! What a CRI server must do, one case a behaviour, put to podway's runtime and to containerd in the same
//! run: a case that fails on both is a defect of the case. Where the two differ by intent, the case says
//! what each does.
//!
//! `cargo test --test cri -- podway security` takes the cases whose name has one of the words;
//! a name is `server::group::case`.

#[path = "cri/checkpoint.rs"]
mod checkpoint;
#[path = "cri/images.rs"]
mod images;
#[path = "cri/life.rs"]
mod life;
#[path = "cri/namespaces.rs"]
mod namespaces;
#[path = "cri/pod.rs"]
mod pod;
#[path = "cri/resources.rs"]
mod resources;
#[path = "cri/security.rs"]
mod security;

use anyhow::Context as _;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use pod::{Skipped, T};
use podway_tests::cri::{Kind, Server, Stage, images as built};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// How many cases run beside each other on one server.
const TOGETHER: usize = 4;

type Run = fn(T) -> BoxFuture<'static, anyhow::Result<()>>;

macro_rules! cases {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), (|t| Box::pin($module::$name(t))) as Run)),*]
    };
}

const CASES: &[(&str, Run)] = cases![
    life::metadata_labels_and_annotations_come_back,
    life::states_times_and_exit_codes,
    life::a_repeated_call_has_one_effect,
    life::stop_and_remove_of_what_is_not_there,
    life::a_new_attempt_is_another_container,
    life::nothing_is_created_in_a_stopped_sandbox,
    life::removed_while_it_runs,
    life::output_goes_to_the_log,
    life::the_log_is_reopened,
    life::the_stop_signal_is_sent,
    life::filters,
    life::events_in_order,
    life::verbose_status,
    life::lists_as_streams,
    life::a_command_that_is_not_there,
    life::what_the_runtime_says_of_itself,
    namespaces::a_pid_namespace_each,
    namespaces::a_shared_pid_namespace,
    namespaces::the_pid_namespace_of_another,
    namespaces::the_hosts_pids,
    namespaces::the_hosts_network_is_the_hosts,
    namespaces::the_hosts_ipc_is_the_hosts,
    namespaces::a_user_namespace,
    namespaces::the_hostname_and_dns_are_the_pods,
    namespaces::sysctls_of_the_pod,
    namespaces::mounts_that_propagate,
    security::users_and_groups,
    security::capabilities,
    security::no_new_privileges,
    security::seccomp_profiles,
    security::a_read_only_root,
    security::masked_and_read_only_paths,
    security::privileged,
    security::devices,
    security::apparmor_profiles,
    security::what_cannot_be_had_is_refused,
    resources::limits_are_in_the_cgroup,
    resources::limits_change_while_it_runs,
    resources::a_refused_limit_changes_nothing,
    resources::killed_for_want_of_memory,
    images::an_image_that_is_not_there_is_not_found,
    images::an_image_is_a_volume,
    images::a_read_only_mount_is_so_in_depth,
    checkpoint::memory_and_files_of_a_running_container,
    checkpoint::a_hostile_location_is_refused,
    checkpoint::of_nothing_but_what_runs,
];

fn main() -> ExitCode {
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let list = std::env::args().any(|a| a == "--list");
    let taken = |kind: Kind| {
        let named = move |name: &str| format!("{}::{name}", kind.name());
        let all = CASES.iter().map(move |(name, run)| (named(name), *run));
        let of = filters.clone();
        all.filter(move |(name, _)| of.is_empty() || of.iter().any(|f| name.contains(f.as_str())))
            .collect::<Vec<_>>()
    };
    let plan: Vec<(Kind, Vec<(String, Run)>)> =
        [Kind::Podway, Kind::Containerd].into_iter().map(|kind| (kind, taken(kind))).collect();
    let count: usize = plan.iter().map(|(_, cases)| cases.len()).sum();
    if list {
        plan.iter().flat_map(|(_, cases)| cases).for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let (mut failed, mut skipped) = (Vec::new(), 0);
    if count > 0 {
        println!("\nrunning {count} cases");
        let ran = tokio::runtime::Runtime::new().context("no runtime").and_then(|r| r.block_on(all(plan)));
        match ran {
            Ok(all) => (failed, skipped) = all,
            Err(error) => failed.push(format!("the stage: {error:#}")),
        }
    }
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    for line in &failed {
        println!("    {line}");
    }
    println!(
        "\ntest result: {word}. {} passed; {} failed; {skipped} ignored; 0 measured; {} filtered out",
        count.saturating_sub(failed.len() + skipped),
        failed.len(),
        (2 * CASES.len()).saturating_sub(count)
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the plan; gives what failed, and how many were skipped.
async fn all(plan: Vec<(Kind, Vec<(String, Run)>)>) -> anyhow::Result<(Vec<String>, usize)> {
    let work = tempfile::tempdir()?;
    let stage = Arc::new(Stage::set(&built::plain(work.path()).await?).await?);
    let (mut failed, mut skipped) = (Vec::new(), 0);
    for (kind, cases) in plan.into_iter().filter(|(_, cases)| !cases.is_empty()) {
        let server = Server::start(&stage, kind).await?;
        let mut client = server.client().await?;
        for image in [built::BUSYBOX, built::PREDEFINED_GROUP, built::NO_NEW_PRIVS] {
            client.pull(image).await.with_context(|| format!("pulling {image}"))?;
        }
        let results = futures::stream::iter(cases).map(|(name, run)| {
            let t = T { cri: client.clone(), kind, stage: Arc::clone(&stage), name: name.clone() };
            async move {
                let begun = Instant::now();
                let mut cleaner = t.clone();
                // A task of its own, so that a panic fails this case only.
                let result = match tokio::spawn(run(t)).await {
                    Ok(result) => result,
                    Err(error) => Err(error.into()),
                };
                let result = result.and(cleaner.clean().await);
                (name, result, begun.elapsed().as_secs_f64())
            }
        });
        let mut results = results.buffer_unordered(TOGETHER);
        while let Some((name, result, took)) = results.next().await {
            match result {
                Ok(()) => println!("test {name} ... ok ({took:.1} s)"),
                Err(error) if error.is::<Skipped>() => {
                    println!("test {name} ... skipped: {error}");
                    skipped += 1;
                }
                Err(error) => {
                    println!("test {name} ... FAILED ({took:.1} s): {error:#}");
                    failed.push(format!("{name}: {error:#}"));
                }
            }
        }
        drop(results);
        server.stop().await?;
    }
    Ok((failed, skipped))
}
