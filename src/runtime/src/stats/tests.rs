//! The collector on a tree that a test writes, and the table of metrics.

use super::*;
use std::collections::BTreeSet;

fn tree() -> tempfile::TempDir {
    let tmp = tempfile::tempdir().unwrap();
    std::fs::write(tmp.path().join("cgroup.controllers"), "").unwrap();
    std::fs::create_dir_all(tmp.path().join("pod/c")).unwrap();
    used(&tmp, 1_000_000);
    std::fs::write(tmp.path().join("pod/c/memory.current"), "4096\n").unwrap();
    tmp
}

fn used(tmp: &tempfile::TempDir, us: u64) {
    std::fs::write(tmp.path().join("pod/c/cpu.stat"), format!("usage_usec {us}\n")).unwrap();
}

fn source(tmp: &tempfile::TempDir, since: i64, now: i64) -> Source {
    Source { cgroups: Cgroups::at(tmp.path()), cgroup: "/pod/c".to_owned(), netns: None, since, now }
}

#[test]
fn a_rate_is_over_the_time_between_two_samples_and_the_first_over_the_life() {
    let tmp = tree();
    // 1 s of processor time in 4 s of life.
    let first = source(&tmp, 1_000_000_000, 5_000_000_000).read(None);
    assert_eq!((first.at, first.nano_cores), (5_000_000_000, Some(250_000_000)));
    assert_eq!(source(&tmp, 0, 5).read(None).nano_cores, None, "a start that is not known");
    let before = Load { taken: Instant::now() - Duration::from_secs(10), ..first };
    used(&tmp, 2_000_000);
    let second = source(&tmp, 1_000_000_000, 15_000_000_000).read(Some(&before));
    // 1 s more in a little over 10 s.
    let rate = second.nano_cores.unwrap();
    assert!((50_000_000..=100_000_000).contains(&rate), "{rate}");
    used(&tmp, 1);
    assert_eq!(source(&tmp, 1, 2).read(Some(&second)).nano_cores, None, "a counter that went back");
}

#[tokio::test]
async fn what_is_fresh_is_not_read_again_and_what_is_gone_is_forgotten() {
    let tmp = tree();
    let collector = Arc::new(Collector::new(tmp.path().to_owned()));
    let id = Id::random().unwrap();
    collector.load(&id, source(&tmp, 1, 10)).load.settled().await;
    collector.load(&id, source(&tmp, 1, 20)).load.settled().await;
    assert_eq!(collector.entry(&id).load.latest().unwrap().at, 10);
    let upper = tmp.path().join("containers").join(id.as_str()).join("upper");
    std::fs::create_dir_all(&upper).unwrap();
    std::fs::write(upper.join("file"), "x").unwrap();
    assert_eq!(collector.written(7).await.1, 1);
    collector.forget(&BTreeSet::new());
    assert!(collector.entry(&id).load.latest().is_none());
}

/// A reader that hangs (a cgroup on a stuck kernel, a layer on a dead disk) delays nobody for ever.
#[tokio::test]
async fn who_asks_waits_no_longer_than_patience() {
    let cell: Cell<u32> = Cell::default();
    let stuck = cell.claim(|_| false).unwrap();
    patient([cell.settled()]).await;
    assert!(cell.latest().is_none());
    drop(stuck);
}

#[test]
fn every_family_is_described_once_with_labels_that_differ() {
    let all = metrics::descriptors();
    let names: BTreeSet<&str> = all.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names.len(), all.len());
    assert!(names.len() >= 56, "{}", names.len());
    for descriptor in &all {
        let labels: BTreeSet<&String> = descriptor.label_keys.iter().collect();
        assert_eq!(labels.len(), descriptor.label_keys.len(), "{}", descriptor.name);
        assert!(!descriptor.help.is_empty() && descriptor.name.starts_with("container_"));
    }
}
