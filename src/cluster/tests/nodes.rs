//! Nodes and registry, for real: two namespaces that reach each other and the API server, images
//! that are served, a crash in the middle, and nothing left after down.

#![expect(clippy::unwrap_used, reason = "a test: a panic is its failure")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use podway_cluster::network::Network;
use podway_cluster::push::Registry;
use podway_cluster::{Layout, UpOptions, down, process, state::State, up};

/// Everything of the machine that an `up` touches.
#[derive(Debug, PartialEq)]
struct Machine {
    links: Vec<String>,
    netns: Vec<String>,
    mounts: Vec<String>,
    rules: String,
    forward: String,
    cgroups: Vec<String>,
}

fn names(dir: &str) -> Vec<String> {
    let Ok(dir) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> = dir.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

impl Machine {
    /// What is seen of the cluster in `slot`; others may work beside this test.
    fn now(network: Network) -> Self {
        let ours = |text: &str| text.contains(&network.bridge()) || text.contains(&network.node(0).netns());
        let keep = |list: Vec<String>| list.into_iter().filter(|n| ours(n)).collect::<Vec<_>>();
        let rules = ["nat", "filter"].map(|t| run("iptables", &["-w", "-t", t, "-S"]));
        let rules: String = rules.iter().map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).collect();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        Machine {
            links: keep(names("/sys/class/net")),
            netns: keep(names("/run/netns")),
            mounts: keep(mounts.lines().map(str::to_owned).collect()),
            rules: rules.lines().filter(|l| ours(l)).collect(),
            forward: std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(),
            cgroups: keep(names("/sys/fs/cgroup/memory/podway")),
        }
    }
}

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap()
}

/// Runs a program in a node's namespace.
fn inside(netns: &Path, program: &str, args: &[&str]) -> Output {
    let entered = format!("--net={}", netns.display());
    let mut all = vec![entered.as_str(), program];
    all.extend(args);
    run("nsenter", &all)
}

fn good(output: &Output) -> bool {
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    true
}

/// Takes the cluster down when the test fails; on success there is nothing left to do.
struct Guard(PathBuf);

impl Drop for Guard {
    fn drop(&mut self) {
        let state_dir = self.0.clone();
        let work = move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(down(&state_dir, |line| eprintln!("{line}"))).unwrap();
        };
        // Not in the test's own runtime, which may not be blocked.
        drop(std::thread::spawn(work).join());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_and_registry_come_up_recover_and_go() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let options = UpOptions { state_dir: dir.path().join("state"), nodes: 2, ..UpOptions::default() };
    let _guard = Guard(options.state_dir.clone());
    let forward_before = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    let cluster = up(options.clone(), |line| eprintln!("{line}")).await.unwrap();
    let layout = Layout::new(std::fs::canonicalize(&options.state_dir).unwrap());
    let first = State::load(&layout).unwrap().unwrap();
    let network = Network::new(first.slot.unwrap()).unwrap();
    let (one, two) = (network.node(0), network.node(1));

    // The nodes reach each other, the API server and, at the address of its service, again.
    let ca = layout.cert("ca").display().to_string();
    let service = "https://10.96.0.1:443".to_owned();
    for server in [&cluster.server, &service] {
        let url = format!("{server}/version");
        assert!(good(&inside(&one.netns_path(), "curl", &["-sSf", "-m", "5", "--cacert", &ca, &url])));
    }
    let target = two.address().to_string();
    let mut listen = Command::new("nsenter")
        .arg(format!("--net={}", two.netns_path().display()))
        .args(["busybox", "nc", "-l", "-p", "7007", "-e", "echo", "from two"])
        .spawn()
        .unwrap();
    // nc tells nobody that it listens, so the connection is tried until it does.
    let mut attempts = 0..100;
    let answer = loop {
        attempts.next().expect("nc in the other node answers");
        let out = inside(&one.netns_path(), "busybox", &["nc", "-w", "2", &target, "7007"]);
        if out.status.success() {
            break out;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "from two");
    listen.wait().unwrap();

    // The images are served, to the nodes too.
    let endpoint = cluster.registry.clone().unwrap();
    let registry = Registry::new(&endpoint);
    for (repository, tag) in [("library/busybox", "latest"), ("pause", "3.10.1")] {
        assert!(registry.digest(repository, tag).await.unwrap().is_some(), "{repository}");
    }
    let url = format!("http://{endpoint}/v2/library/busybox/manifests/latest");
    assert!(good(&inside(&two.netns_path(), "curl", &["-sSf", "-m", "5", &url])));

    // A second up changes nothing and starts nothing.
    let lines = std::sync::Mutex::new(Vec::new());
    up(options.clone(), |line| lines.lock().unwrap().push(line.to_owned())).await.unwrap();
    assert_eq!(*lines.lock().unwrap(), Vec::<String>::new());
    assert_eq!(State::load(&layout).unwrap().unwrap(), first);

    // An up that was killed before it recorded the registry, and in the middle of a node: the
    // registry is found and not started twice, the node is made whole.
    let mut forgetful = first.clone();
    forgetful.processes.remove("registry").unwrap();
    forgetful.save(&layout).unwrap();
    assert!(good(&inside(&two.netns_path(), "ip", &["link", "del", "eth0"])));
    up(options.clone(), |line| eprintln!("{line}")).await.unwrap();
    assert_eq!(State::load(&layout).unwrap().unwrap(), first);
    let ping = ["-c", "1", "-W", "2", target.as_str()];
    assert!(good(&inside(&one.netns_path(), "busybox", &[&["ping"][..], &ping].concat())));

    // Fewer nodes: the other goes.
    up(UpOptions { nodes: 1, ..options.clone() }, |line| eprintln!("{line}")).await.unwrap();
    assert!(!two.netns_path().exists());

    // A stranger in the node's cgroup and a mount in its directory go with it.
    let cgroup = Path::new("/sys/fs/cgroup/memory").join(one.cgroup().trim_start_matches('/'));
    let cgroups = cgroup.parent().is_some_and(|p| p.parent().is_some_and(Path::is_dir));
    let mut sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
    if cgroups {
        std::fs::create_dir_all(cgroup.join("pod")).unwrap();
        std::fs::write(cgroup.join("pod/cgroup.procs"), sleeper.id().to_string()).unwrap();
    } else {
        sleeper.kill().unwrap();
    }
    let mounted = layout.node("podway-0").join("mounted");
    std::fs::create_dir_all(&mounted).unwrap();
    assert!(good(&run("mount", &["-t", "tmpfs", "none", mounted.to_str().unwrap()])));

    assert!(down(&options.state_dir, |line| eprintln!("{line}")).await.unwrap());
    assert!(!sleeper.wait().unwrap().success(), "it was killed");
    assert_eq!(process::marked(layout.root()).unwrap(), vec![]);
    for (name, record) in &first.processes {
        assert!(!process::alive(record), "{name} is left");
    }
    assert!(!options.state_dir.exists());
    let nothing = Machine {
        links: vec![],
        netns: vec![],
        mounts: vec![],
        rules: String::new(),
        forward: forward_before.clone(),
        cgroups: vec![],
    };
    assert_eq!(Machine { forward: forward_before, ..Machine::now(network) }, nothing);
    assert!(!down(&options.state_dir, |_| ()).await.unwrap(), "a second down finds nothing");

    // Who removes the directory by hand can still take the rest down.
    up(options.clone(), |line| eprintln!("{line}")).await.unwrap();
    std::fs::remove_dir_all(&options.state_dir).unwrap();
    assert!(down(&options.state_dir, |line| eprintln!("{line}")).await.unwrap());
    assert_eq!(process::marked(layout.root()).unwrap(), vec![]);
    let left = Machine::now(network);
    assert_eq!((left.links, left.netns, left.rules), (vec![], vec![], String::new()));
}
