//! Measures a cluster from outside: a watch on the API server, its audit log, and /proc.
//!
//! It prints the table of docs/performance.md. The cluster may be any: with
//! `--kubeconfig`, `--scheduler-name` and `--process` a stock one is measured by the same program. With
//! `--beside-stock` both are, one after the other on one control plane: the first node as it is, then the
//! second with a stock kubelet and containerd in the place of its daemons, and a stock kube-scheduler.

use anyhow::Context as _;
use clap::Parser;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, ResourceExt as _};
use podway_tests::audit;
use podway_tests::cluster::Cluster;
use podway_tests::figures::{Table, Times};
use podway_tests::meter::{Memory, Seen, Watcher, memory};
use podway_tests::namespace::{self, STAY};
use podway_tests::observed::{self, Cost};
use podway_tests::steady::{self, Steady};
use podway_tests::swap::{Scheduler, Swapped, is_on};
use podway_tests::wait;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);

/// Measure a cluster from outside and print the table of docs/performance.md.
#[derive(Parser, Clone)]
#[command(after_help = "Example:\n  podway up --nodes 1 --no-demo && podway-bench")]
struct Args {
    /// The state directory of `podway up`: gives kubeconfig and audit log.
    #[arg(long, default_value = podway_cluster::up::DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    /// Another kubeconfig.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Another audit log; without one, writes are not counted.
    #[arg(long)]
    audit_log: Option<PathBuf>,
    /// `spec.schedulerName` of the pods.
    #[arg(long, default_value = podway_api::annotations::SCHEDULER_NAME)]
    scheduler_name: String,
    /// The image of the pods; a busybox.
    #[arg(long, default_value = namespace::BUSYBOX)]
    image: String,
    /// How many pods are started one by one, for each kind.
    #[arg(long, default_value_t = 50)]
    count: usize,
    /// How many pods are started at once.
    #[arg(long, default_value_t = 50)]
    burst: usize,
    /// The heading of the column of figures.
    #[arg(long, default_value = "podway")]
    label: String,
    /// The node that the pods are to run on; any if not given.
    #[arg(long)]
    node: Option<String>,
    /// Measure a stock node in the same run, for the last column; wants `podway up --nodes 2`.
    #[arg(long, conflicts_with_all = ["kubeconfig", "node"])]
    beside_stock: bool,
    /// Measure what it costs to be observed instead: --count pods with a PodFlow and as many without, in one run.
    #[arg(long, conflicts_with_all = ["kubeconfig", "node", "beside_stock"])]
    observed: bool,
    /// Measure what this many pods cost that are probed and do nothing else, on one node.
    #[arg(long, value_name = "PODS", conflicts_with_all = ["kubeconfig", "node", "beside_stock", "observed"])]
    steady: Option<usize>,
    /// Processes of the node side, by a part of their command line: agent, runtime, what watches a pod.
    #[arg(long = "process", default_values_t = ["/podway-agent --".to_owned(), "/podway-runtime --".to_owned(), "/podway-monitor --".to_owned()])]
    processes: Vec<String>,
}

struct Bench {
    args: Args,
    client: Client,
    namespace: String,
    watcher: Watcher,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    tokio::runtime::Runtime::new()?.block_on(run(args))
}

async fn run(args: Args) -> anyhow::Result<()> {
    if args.observed {
        println!("{}", observed_cost(&args).await?.markdown());
        return Ok(());
    }
    if let Some(count) = args.steady {
        println!("{}", steady(&args, count).await?.markdown());
        return Ok(());
    }
    if !args.beside_stock {
        let label = args.label.clone();
        println!("{}", measure(args).await?.markdown(&label, "stock 1.36.3"));
        return Ok(());
    }
    let cluster = Cluster::attach(&args.state_dir, 2).await?;
    let ours = Args { node: Some("podway-0".to_owned()), ..args.clone() };
    let ours = measure(ours).await?;
    let node = Swapped::stock(&cluster, STOCK).await?;
    let scheduler = Scheduler::stock(&cluster).await?;
    let stock = async {
        is_on(&cluster, STOCK, "containerd://").await?;
        measure(Args {
            node: Some(STOCK.to_owned()),
            scheduler_name: "default-scheduler".to_owned(),
            processes: ["/kubelet --", "bin/containerd --config", "containerd-shim-runc-v2"]
                .map(str::to_owned)
                .to_vec(),
            ..args.clone()
        })
        .await
    };
    let stock = stock.await;
    scheduler.stop().await?;
    node.stop().await?;
    cluster.up_again().await?;
    println!("{}", ours.beside(&stock?).markdown(&args.label, "stock 1.36.3, same run"));
    Ok(())
}

/// How long it is looked what a full node costs.
const STEADY: Duration = Duration::from_secs(120);

async fn steady(args: &Args, count: usize) -> anyhow::Result<Steady> {
    let client = Cluster::attach(&args.state_dir, 1).await?.client;
    in_namespace(&client, async |name| {
        let pods = Api::namespaced(client.clone(), name);
        let mut watcher = Watcher::new(pods.clone());
        steady::measure(pods, &mut watcher, &args.processes, count, STEADY).await
    })
    .await
}

async fn observed_cost(args: &Args) -> anyhow::Result<Cost> {
    let client = Cluster::attach(&args.state_dir, 1).await?.client;
    let mut processes = args.processes.clone();
    processes.push("/podway-scheduler --".to_owned());
    in_namespace(&client, async |name| {
        let (pods, flows) = (Api::namespaced(client.clone(), name), Api::namespaced(client.clone(), name));
        observed::measure(pods.clone(), flows, &mut Watcher::new(pods), &processes, args.count).await
    })
    .await
}

/// Does `work` in a namespace of its own, which goes again.
async fn in_namespace<T>(
    client: &Client,
    work: impl AsyncFnOnce(&str) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let name = made(&namespaces, client).await?;
    let result = work(&name).await;
    namespaces.delete(&name, &DeleteParams::default()).await?;
    wait::until_gone(namespaces, &name, None, LIMIT).await?;
    result
}

/// A namespace in which pods can be made.
async fn made(namespaces: &Api<Namespace>, client: &Client) -> anyhow::Result<String> {
    let object = Namespace {
        metadata: ObjectMeta { generate_name: Some("bench-".into()), ..ObjectMeta::default() },
        ..Namespace::default()
    };
    let namespace = namespaces.create(&PostParams::default(), &object).await?.name_any();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
    wait::until(accounts, "metadata.name=default", "the service account", LIMIT, |_| true).await?;
    Ok(namespace)
}

/// The node that a stock kubelet takes over.
const STOCK: &str = "podway-1";

async fn measure(mut args: Args) -> anyhow::Result<Table> {
    let path = args.kubeconfig.clone().unwrap_or_else(|| args.state_dir.join("admin.kubeconfig"));
    let file = Kubeconfig::read_from(&path).with_context(|| format!("reading {}", path.display()))?;
    let client =
        Client::try_from(kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?)?;
    if args.kubeconfig.is_none() && args.audit_log.is_none() {
        args.audit_log = Some(args.state_dir.join("audit.log"));
    }
    in_namespace(&client, async |name| {
        let watcher = Watcher::new(Api::namespaced(client.clone(), name));
        let mut bench = Bench { args, client: client.clone(), namespace: name.to_owned(), watcher };
        bench.all().await
    })
    .await
}

impl Bench {
    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn all(&mut self) -> anyhow::Result<Table> {
        let mut table = Table::default();
        // The first pod pulls the image and warms what is to be warmed; it does not count.
        self.one_by_one(1, true).await?;

        let (starts, ends) = self.one_by_one(self.args.count, true).await?;
        table.row(
            "create → Ready, one by one, with token volume, p50 / p99",
            starts.cell(),
            "80 / 150 ms",
            "451 / 465 ms",
        );
        table.row("delete → gone, one by one, p50 / p99", ends.cell(), "80 / 200 ms", "1,555 / 2,546 ms");
        let (starts, _) = self.one_by_one(self.args.count, false).await?;
        table.row(
            "create → Ready, without token volume, p50 / p99",
            starts.cell(),
            "60 / 120 ms",
            "150 / 216 ms",
        );
        self.writes(&mut table).await?;
        self.burst(&mut table).await?;
        Ok(table)
    }

    fn pod(&self, name: &str, token: bool) -> anyhow::Result<Pod> {
        let main: Value = json!({"image": self.args.image});
        let spec = json!({
            "schedulerName": self.args.scheduler_name, "automountServiceAccountToken": token, "main": main});
        let mut pod = namespace::pod(name, STAY, spec);
        if let Some(node) = &self.args.node {
            pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        }
        Ok(serde_json::from_value(pod)?)
    }

    async fn create(&self, name: &str, token: bool) -> anyhow::Result<()> {
        self.api().create(&PostParams::default(), &self.pod(name, token)?).await.context("creating a pod")?;
        Ok(())
    }

    async fn delete(&self, name: &str) -> anyhow::Result<()> {
        self.api().delete(name, &DeleteParams::default()).await.context("deleting a pod")?;
        Ok(())
    }

    async fn one_by_one(&mut self, count: usize, token: bool) -> anyhow::Result<(Times, Times)> {
        let (mut starts, mut ends) = (Times::default(), Times::default());
        for i in 0..count {
            let name = format!("one-{i}");
            let start = Instant::now();
            self.create(&name, token).await?;
            let ready = self.watcher.all(&[Seen::Ready(name.clone())], LIMIT).await?;
            starts.add(ready.duration_since(start));
            let start = Instant::now();
            self.delete(&name).await?;
            let gone = self.watcher.all(&[Seen::Gone(name)], LIMIT).await?;
            ends.add(gone.duration_since(start));
        }
        Ok((starts, ends))
    }

    /// API writes of a start, from the audit log.
    async fn writes(&mut self, table: &mut Table) -> anyhow::Result<()> {
        const PODS: usize = 5;
        let Some(log) = self.args.audit_log.clone() else { return Ok(()) };
        let mark = audit::mark(&log)?;
        let names: Vec<String> = (0..PODS).map(|i| format!("write-{i}")).collect();
        for name in &names {
            self.create(name, true).await?;
            self.watcher.all(&[Seen::Ready(name.clone())], LIMIT).await?;
        }
        // What is written after Ready (flows, events) belongs to the start too.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let requests = audit::since(&log, mark, &self.namespace)?;
        let writes = requests.iter().filter(|r| r.is_write()).count();
        let gets = requests.iter().filter(|r| r.verb == "get").count();
        let each = |n: usize| format!("{}.{}", n / PODS, n % PODS * 10 / PODS);
        table.row(
            "API writes and GETs per start",
            format!("{} + {} GET", each(writes), each(gets)),
            "7 + 0 GET",
            "9 + 3 GET",
        );
        for name in &names {
            self.delete(name).await?;
        }
        let gone: Vec<Seen> = names.into_iter().map(Seen::Gone).collect();
        self.watcher.all(&gone, LIMIT).await?;
        Ok(())
    }

    async fn burst(&mut self, table: &mut Table) -> anyhow::Result<()> {
        let n = self.args.burst;
        let idle: Vec<Memory> = self.args.processes.iter().map(|p| memory(p)).collect();
        let names: Vec<String> = (0..n).map(|i| format!("burst-{i}")).collect();
        let start = Instant::now();
        try_join_all(names.iter().map(|name| self.create(name, true))).await?;
        let ready: Vec<Seen> = names.iter().cloned().map(Seen::Ready).collect();
        let took = self.watcher.all(&ready, LIMIT).await?.duration_since(start).as_secs_f64();
        let per_second = f64::from(u32::try_from(n)?) / took;
        let busy: Vec<Memory> = self.args.processes.iter().map(|p| memory(p)).collect();
        table.row(&format!("burst of {n} to Ready"), format!("{per_second:.1}/s"), "27/s", "9.0/s");
        let start = Instant::now();
        try_join_all(names.iter().map(|name| self.delete(name))).await?;
        let gone: Vec<Seen> = names.iter().cloned().map(Seen::Gone).collect();
        let took = self.watcher.all(&gone, LIMIT).await?.duration_since(start).as_secs_f64();
        table.row(&format!("all {n} deleted"), format!("{took:.1} s"), "2 s", "6.2 s");
        let mib = |kib: u64| format!("{}.{}", kib / 1024, kib % 1024 * 10 / 1024);
        let mut growth = 0;
        const ROLES: [&str; 3] = ["the agent", "the runtime", "what watches the pods"];
        let names = self.args.processes.iter().enumerate();
        let names = names.map(|(i, pattern)| ROLES.get(i).map_or(pattern.as_str(), |role| role));
        for ((role, idle), busy) in names.zip(&idle).zip(&busy) {
            growth += busy.pss.saturating_sub(idle.pss);
            table.row(
                &format!("memory of {role}, idle → with {n} pods"),
                format!(
                    "{} → {} MiB RSS, {} → {} MiB PSS in {} → {}",
                    mib(idle.rss),
                    mib(busy.rss),
                    mib(idle.pss),
                    mib(busy.pss),
                    idle.processes,
                    busy.processes
                ),
                "agent + runtime 40 MB idle",
                "104 + 86 MB RSS",
            );
        }
        let each = growth / u64::try_from(n.max(1))?;
        table.row(
            "memory per pod, node side",
            format!("{} MiB PSS", mib(each)),
            "1 MB",
            "13 MB RSS, 3.4 MB PSS (shim)",
        );
        Ok(())
    }
}
