//! The registry and plugins, over the sockets that they have.

use super::*;
use crate::csi::name::DriverName;
use crate::csi::tests::{Cluster, DRIVER, Fake, LIMIT};

struct Bench {
    dir: tempfile::TempDir,
    cluster: Arc<Cluster>,
    drivers: Arc<Drivers>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("plugins_registry")).unwrap();
        let cluster = Arc::new(Cluster::default());
        Bench { dir, cluster: cluster.clone(), drivers: Drivers::with_limit(cluster, LIMIT) }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join("plugins_registry").join(name)
    }

    fn serve(&self) {
        let dir = self.dir.path().join("plugins_registry");
        tokio::spawn(Plugins::new(&dir, Arc::clone(&self.drivers)).serve());
    }
}

#[tokio::test]
async fn a_driver_comes_is_made_anew_and_goes() {
    let bench = Bench::new();
    let (fake, endpoint, _task) = Fake::serve(bench.dir.path());
    let name = DriverName::parse(DRIVER).unwrap();
    // One that was there before the agent, in a directory of its own.
    std::fs::create_dir(bench.at("of-it")).unwrap();
    let socket = bench.at("of-it/reg.sock");
    let shown = fake.show(&socket, Fake::says(&endpoint));
    bench.serve();
    assert!(bench.drivers.find(&name).await.is_some(), "it is waited for just after the start");
    fake.heard("taken").await;
    bench.cluster.until("keep csi.example.com").await;
    shown.abort();
    std::fs::remove_file(&socket).unwrap();
    bench.cluster.until("keep ").await;
    assert!(bench.drivers.find(&name).await.is_none());
    // In a directory that is made later.
    std::fs::create_dir_all(bench.at("a/b")).unwrap();
    let _shown = fake.show(&bench.at("a/b/reg.sock"), Fake::says(&endpoint));
    bench.cluster.until("install csi.example.com id-1").await;
}

#[tokio::test]
async fn what_is_not_taken_is_told_why_and_holds_nobody_up() {
    let bench = Bench::new();
    let (fake, endpoint, _task) = Fake::serve(bench.dir.path());
    // One that says nothing, one that nobody serves, and what is no plugin's.
    let _hangs = std::os::unix::net::UnixListener::bind(bench.at("hangs.sock")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(bench.at("left.sock")).unwrap());
    std::fs::write(bench.at("file"), "").unwrap();
    let says = Fake::says(&endpoint);
    let of = |change: &dyn Fn(&mut podway_cri::pluginregistration::PluginInfo)| {
        let mut info = says.clone();
        change(&mut info);
        info
    };
    bench.serve();
    for (socket, info, words) in [
        (
            "dra.sock",
            of(&|i| i.r#type = "DRAPlugin".into()),
            "no handler registered for plugin type: DRAPlugin at socket",
        ),
        (
            "old.sock",
            of(&|i| i.supported_versions = vec!["0.3.0".into()]),
            "plugin validation failed with err",
        ),
        ("up.sock", of(&|i| i.name = "../up".into()), "\"../up\" is no name of a CSI driver"),
        ("near.sock", of(&|i| i.endpoint = "csi.sock".into()), "no absolute path"),
        ("good.sock", says.clone(), "taken"),
    ] {
        // One after the other: they are one fake.
        let shown = fake.show(&bench.at(socket), info);
        let said = fake.heard(words).await;
        assert!(words == "taken" || said.starts_with("RegisterPlugin error -- "), "{said}");
        if words != "taken" {
            shown.abort();
            std::fs::remove_file(bench.at(socket)).unwrap();
        }
    }
    assert!(bench.drivers.find(&DriverName::parse(DRIVER).unwrap()).await.is_some());
}
