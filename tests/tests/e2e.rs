//! What podway must show end to end, on a real API server: the cases of `e2e/`, in one cluster.

#[path = "e2e/chaos.rs"]
mod chaos;
#[path = "e2e/containerd.rs"]
mod containerd;
#[path = "e2e/create.rs"]
mod create;
#[path = "e2e/devices.rs"]
mod devices;
#[path = "e2e/existing.rs"]
mod existing;
#[path = "e2e/failures.rs"]
mod failures;
#[path = "e2e/flow.rs"]
mod flow;
#[path = "e2e/kubectl.rs"]
mod kubectl;
#[path = "e2e/kubelet.rs"]
mod kubelet;
#[path = "e2e/manifests.rs"]
mod manifests;
#[path = "e2e/metrics.rs"]
mod metrics;
#[path = "e2e/network.rs"]
mod network;
#[path = "e2e/pulls.rs"]
mod pulls;
#[path = "e2e/questions.rs"]
mod questions;
#[path = "e2e/restarts.rs"]
mod restarts;
#[path = "e2e/schedule.rs"]
mod schedule;
#[path = "e2e/stock.rs"]
mod stock;
#[path = "e2e/streams.rs"]
mod streams;
#[path = "e2e/stuck.rs"]
mod stuck;
#[path = "e2e/systemd.rs"]
mod systemd;
#[path = "e2e/traces.rs"]
mod traces;
#[path = "e2e/volumes.rs"]
mod volumes;

use podway_tests::suite::{self, Case};
use std::process::ExitCode;

/// `together` or `alone`, and the case's function; its namespace is named after it.
macro_rules! case {
    ($alone:expr, $module:ident :: $name:ident) => {
        Case {
            name: concat!(stringify!($module), "::", stringify!($name)),
            alone: $alone,
            run: |cluster| {
                Box::pin(async move {
                    let namespace = stringify!($name).replace('_', "-");
                    // A generated suffix follows, and a name has room for 63.
                    let namespace =
                        namespace.get(..50).unwrap_or(&namespace).trim_end_matches('-').to_owned();
                    podway_tests::with_temp_ns(cluster, &namespace, $module::$name).await
                })
            },
        }
    };
}

/// Beside others.
const TOGETHER: bool = false;
/// After the others, since it disturbs them.
const ALONE: bool = true;

const CASES: &[Case] = &[
    case!(TOGETHER, create::applied),
    case!(TOGETHER, create::run_by_kubectl),
    case!(TOGETHER, create::through_the_raw_api),
    case!(TOGETHER, create::with_init_config_secret_and_a_shared_volume),
    case!(TOGETHER, create::limits_are_in_the_cgroup),
    case!(TOGETHER, create::with_ids_of_its_own),
    case!(TOGETHER, create::examples_and_manifests),
    case!(TOGETHER, flow::all_18_steps_with_their_evidence),
    case!(TOGETHER, flow::a_start_costs_at_most_7_writes_and_a_settled_pod_none),
    case!(TOGETHER, pulls::shown_as_they_go),
    case!(TOGETHER, failures::bad_image),
    case!(TOGETHER, failures::missing_config_map),
    case!(TOGETHER, failures::crashing),
    case!(TOGETHER, failures::out_of_memory),
    case!(TOGETHER, failures::bad_command),
    case!(TOGETHER, failures::explained),
    case!(TOGETHER, failures::evicted_for_its_own_volume),
    case!(TOGETHER, chaos::a_hung_volume_and_a_hung_probe),
    case!(TOGETHER, kubectl::logs),
    case!(TOGETHER, kubectl::exec),
    case!(TOGETHER, kubectl::deleted_with_grace),
    case!(TOGETHER, devices::of_a_plugin),
    case!(TOGETHER, streams::over_both_protocols),
    case!(TOGETHER, metrics::scraped_by_prometheus),
    case!(TOGETHER, network::localhost),
    case!(TOGETHER, network::across_nodes),
    case!(TOGETHER, schedule::deployment_of_5_over_2_nodes),
    // Before the one that cordons: a taint goes some time after the cordon.
    case!(ALONE, questions::why_and_whatif),
    case!(ALONE, schedule::uncordoned),
    case!(ALONE, stuck::in_the_queue),
    case!(ALONE, metrics::what_dashboard_and_rules_ask_has_data),
    // Alone since `create::examples_and_manifests` has the same objects.
    case!(ALONE, manifests::the_scheduler_in_a_pod),
    case!(ALONE, restarts::of_the_scheduler),
    case!(ALONE, restarts::of_the_agent),
    case!(ALONE, restarts::of_the_runtime),
    case!(ALONE, restarts::an_exit_while_nobody_looks),
    case!(ALONE, restarts::of_the_agent_with_many_pods),
    case!(ALONE, volumes::of_a_csi_driver),
    case!(ALONE, restarts::a_static_pod_and_its_mirror),
    case!(ALONE, restarts::a_second_up_finds_all),
    case!(ALONE, chaos::the_api_server_is_gone_for_a_while),
    case!(ALONE, existing::nodes_of_another_are_not_taken_over),
    case!(ALONE, existing::a_node_joins_and_leaves),
    case!(ALONE, containerd::the_agent_on_it),
    case!(ALONE, kubelet::on_our_runtime),
    case!(ALONE, stock::installed_by_its_manifests),
    case!(ALONE, systemd::nodes_of_its_own),
];

/// With `PODWAY_E2E_TRACES=1`, which has the agents send traces; `just otel` receives them by a real Collector.
const TRACES: &[Case] = &[case!(TOGETHER, traces::one_over_all_daemons_below_the_pods_own)];

fn main() -> ExitCode {
    let mut cases = CASES.to_vec();
    if std::env::var_os("PODWAY_E2E_TRACES").is_some() {
        cases.extend_from_slice(TRACES);
    }
    suite::main(&cases)
}
