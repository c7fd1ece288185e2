//! A short part of the differential test, with a fixed seed; `just differential` runs 2,000 cases.

const SEED: u64 = 20_261_128;
const CASES: usize = 120;

#[tokio::test(flavor = "multi_thread")]
async fn decides_as_a_stock_kube_scheduler() {
    let dir = tempfile::tempdir().unwrap();
    let report = podway_tests::differential::run(dir.path(), SEED, CASES).await.unwrap();
    println!("{}", report.table());
    assert!(report.cases >= CASES);
    assert!(report.differences.is_empty(), "{}", report.differences.join("\n\n"));
    // The cases meet what they are for.
    for plugin in
        ["NodeAffinity", "NodeResourcesFit", "TaintToleration", "PodTopologySpread", "InterPodAffinity"]
    {
        for what in ["refused", "scored"] {
            assert!(report.by.contains_key(&(plugin, what)), "no case in which {plugin} {what}");
        }
    }
}
