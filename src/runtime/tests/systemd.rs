//! The cgroup driver systemd, on a real systemd: booted in a container ([`booted`]), where this
//! executable runs once more as a service.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

#[path = "support/booted.rs"]
mod booted;
#[path = "support/cri.rs"]
mod cri;
#[path = "support/node.rs"]
mod node;
#[path = "systemd/pod.rs"]
mod pod;
#[path = "support/served.rs"]
mod served;

use std::collections::BTreeMap;
use std::process::Command;

/// What `systemctl show` says of a unit.
fn show(unit: &str, properties: &[&str]) -> BTreeMap<String, String> {
    let mut command = Command::new("systemctl");
    command.args(["show", "--property", &properties.join(","), "--", unit]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|l| l.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// Both: the one that boots it, and the one that is run inside.
#[test]
fn on_a_real_systemd() {
    if std::env::var_os(booted::INSIDE).is_some() {
        let threads = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        threads.block_on(inside());
        return;
    }
    let Some(node) = node::node() else { return };
    let directories = node.programs();
    drop(node);
    match booted::run(&["--exact", "on_a_real_systemd", "--nocapture"], &[], &directories) {
        Ok(said) => println!("{said}"),
        Err(error) => panic!("{error:#}"),
    }
}

async fn inside() {
    pod::a_pod_in_the_slice_of_its_kubelet().await;
    pod::a_pod_in_a_slice_of_its_own().await;
}
