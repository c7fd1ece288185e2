//! Pods come and go on a cluster of its own for a long time, each deleted as soon as it is Ready, and every few seconds
//! it is looked what could have grown: memory, file descriptors, cgroups, mounts, namespaces, addresses, objects. It
//! ends with a verdict, a table and a picture; what grows or is left over is an error.

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::runtime::watcher;
use kube::{Client, ResourceExt as _};
use podway_api::PodFlow;
use podway_tests::cluster::Cluster;
use podway_tests::figures::Times;
use podway_tests::leaks::Snapshot;
use podway_tests::namespace::{self, STAY};
use podway_tests::soak::{Sample, plot, sample, trend};
use podway_tests::wait;
use serde_json::json;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::time::MissedTickBehavior;

/// How long a pod may take to be Ready, or to go.
const LIMIT: Duration = Duration::from_secs(120);

/// Let pods come and go, and see what grows.
#[derive(Parser)]
#[command(after_help = "Example:\n  podway-soak --seconds 1200 --rate 5 --nodes 2 --out docs")]
struct Args {
    /// How long, in seconds.
    #[arg(long, default_value_t = 1200)]
    seconds: u64,
    /// How many pods are made in a second.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// How many nodes.
    #[arg(long, default_value_t = 2)]
    nodes: u8,
    /// How many pods there may be at a time: beyond it none is made, and the rate is not kept.
    #[arg(long, default_value_t = 60)]
    most: usize,
    /// How often it is looked, in seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// Where the cluster lives while it is up; it is taken down again.
    #[arg(long, default_value = "/var/lib/podway/soak")]
    state_dir: PathBuf,
    /// The directory that soak.svg and soak.md are written into.
    #[arg(long, default_value = ".")]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    tokio::runtime::Runtime::new()?.block_on(run(&args))
}

async fn run(args: &Args) -> anyhow::Result<()> {
    let before = Snapshot::take(&args.state_dir);
    let cluster = Cluster::up(&args.state_dir, args.nodes).await?;
    let result = soak(args, &cluster).await;
    drop(cluster);
    let down = Cluster::down(&args.state_dir).await;
    let run = result?;
    down?;
    let left = Snapshot::take(&args.state_dir).new_since(&before);
    let trends = trend::trends(&run.samples);
    let verdict = run.verdict(&trends, &left);
    let report = format!("{}\n{}\n{}", run.head(args), trend::markdown(&trends), verdict.join("\n"));
    println!("{report}");
    write(&args.out.join("soak.md"), &format!("{report}\n"))?;
    write(&args.out.join("soak.svg"), &plot::svg(&run.samples, &run.head(args)))?;
    ensure!(verdict.len() == 1, "the soak did not hold");
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// What a run came to.
#[derive(Default)]
struct Run {
    samples: Vec<(f64, Sample)>,
    made: u64,
    gone: u64,
    /// Ticks at which there were too many pods for one more.
    skipped: u64,
    took: Duration,
    starts: Times,
    /// Objects that were still there once all pods were gone.
    objects: Vec<String>,
    /// What was there once all pods were gone, and not before the first.
    left: Vec<String>,
}

impl Run {
    fn head(&self, args: &Args) -> String {
        let seconds = self.took.as_secs_f64().max(1.0);
        format!(
            "{} pods in {seconds:.0} s on {} nodes ({} per second were asked for; {} were not made, since {} were there), \
             create → Ready {}\n",
            self.made,
            args.nodes,
            args.rate,
            self.skipped,
            args.most,
            self.starts.cell()
        )
    }

    /// One line: it holds; or one for each thing that does not.
    fn verdict(&self, trends: &[trend::Trend], left: &[String]) -> Vec<String> {
        let mut bad = vec!["verdict: DOES NOT HOLD".to_owned()];
        bad.extend(trends.iter().filter(|t| t.grows()).map(|t| format!("- grows: {}", t.name)));
        bad.extend(self.objects.iter().map(|o| format!("- an object that nobody needs: {o}")));
        bad.extend(self.left.iter().map(|l| format!("- left by the pods: {l}")));
        bad.extend(left.iter().map(|l| format!("- left by the cluster: {l}")));
        if self.gone != self.made {
            bad.push(format!("- {} pods were made and {} went", self.made, self.gone));
        }
        if trends.is_empty() {
            bad.push("- too few looks to tell".to_owned());
        }
        if bad.len() > 1 { bad } else { vec!["verdict: holds: nothing grows, nothing is left".to_owned()] }
    }
}

async fn soak(args: &Args, cluster: &Cluster) -> anyhow::Result<Run> {
    let client = cluster.client.clone();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let name = "soak".to_owned();
    let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
    let object = Namespace { metadata, ..Namespace::default() };
    namespaces.create(&PostParams::default(), &object).await.context("creating the namespace")?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &name);
    wait::until(accounts, "metadata.name=default", "the service account", LIMIT, |_| true).await?;

    let mut churn =
        Churn { api: Api::namespaced(client.clone(), &name), run: Run::default(), alive: HashMap::new() };
    // The first pods pull the image and make what stays: a bridge, a network, caches.
    let warm = usize::from(args.nodes) * 4;
    churn.drive(args, cluster, Until::Made(warm)).await?;
    churn.run = Run::default();
    let before = Snapshot::take(cluster.layout.root());
    let begun = Instant::now();
    churn.drive(args, cluster, Until::Past(begun, Duration::from_secs(args.seconds))).await?;
    let mut run = churn.run;
    run.took = begun.elapsed();
    run.objects = objects(&client, &name).await?;
    run.left = Snapshot::take(cluster.layout.root()).new_since(&before);
    Ok(run)
}

/// Pods and flows that are there, by name.
async fn objects(client: &Client, namespace: &str) -> anyhow::Result<Vec<String>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let flows: Api<PodFlow> = Api::namespaced(client.clone(), namespace);
    // The garbage collector takes a flow after its pod.
    for flow in flows.list(&ListParams::default()).await?.items {
        let name = flow.name_any();
        if let Err(error) = wait::until_gone(flows.clone(), &name, flow.uid().as_deref(), LIMIT).await {
            eprintln!("podflow {name}: {error}");
        }
    }
    let mut left: Vec<String> = Vec::new();
    left.extend(pods.list(&ListParams::default()).await?.iter().map(|p| format!("pod {}", p.name_any())));
    left.extend(
        flows.list(&ListParams::default()).await?.iter().map(|f| format!("podflow {}", f.name_any())),
    );
    Ok(left)
}

/// When no more pods are made.
#[derive(Clone, Copy)]
enum Until {
    Made(usize),
    Past(Instant, Duration),
}

/// Pods that come and go.
struct Churn {
    api: Api<Pod>,
    run: Run,
    /// When each was made, until it is to go.
    alive: HashMap<String, Option<Instant>>,
}

impl Churn {
    /// Makes pods until `until` and waits until all are gone.
    async fn drive(&mut self, args: &Args, cluster: &Cluster, until: Until) -> anyhow::Result<()> {
        let mut watch = pin!(watcher(self.api.clone(), watcher::Config::default()));
        let mut make = tokio::time::interval(Duration::from_secs(1) / args.rate);
        // A creation that took long is made up for: the rate is that of the whole run.
        make.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut look = tokio::time::interval(Duration::from_secs(args.every));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let begun = Instant::now();
        let mut last = begun;
        loop {
            let over = match until {
                Until::Made(most) => self.run.made >= most as u64,
                Until::Past(from, long) => from.elapsed() >= long,
            };
            if over && self.alive.is_empty() {
                return Ok(());
            }
            tokio::select! {
                biased;
                event = watch.next() => {
                    match event.context("the watch ended")? {
                        Ok(event) => {
                            if self.told(event).await? {
                                last = Instant::now();
                            }
                        }
                        Err(error) => eprintln!("the watch broke off and is begun again: {error}"),
                    }
                }
                _ = look.tick(), if !over && matches!(until, Until::Past(..)) => {
                    let mut seen = sample::take(cluster)?;
                    #[expect(clippy::cast_precision_loss, reason = "some dozens of pods")]
                    seen.insert("pods".to_owned(), self.alive.len() as f64);
                    self.run.samples.push((begun.elapsed().as_secs_f64(), seen));
                }
                _ = make.tick(), if !over => self.make(args).await?,
                () = tokio::time::sleep(LIMIT.saturating_sub(last.elapsed())), if !self.alive.is_empty() => {
                    bail!("nothing came or went for {LIMIT:?}; there are {:?}", self.alive.keys());
                }
            }
        }
    }

    async fn make(&mut self, args: &Args) -> anyhow::Result<()> {
        if self.alive.len() >= args.most {
            self.run.skipped += 1;
            return Ok(());
        }
        let made: Pod = serde_json::from_value(namespace::pod("soak", STAY, json!({})))?;
        let metadata = ObjectMeta { name: None, generate_name: Some("soak-".to_owned()), ..made.metadata };
        let begun = Instant::now();
        let made = self
            .api
            .create(&PostParams::default(), &Pod { metadata, ..made })
            .await
            .context("making a pod")?;
        self.run.made += 1;
        self.alive.insert(made.name_any(), Some(begun));
        Ok(())
    }

    /// Takes in what the watch tells; whether a pod has come or gone.
    async fn told(&mut self, event: watcher::Event<Pod>) -> anyhow::Result<bool> {
        match event {
            watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => {
                let name = pod.name_any();
                let ready = namespace::condition(&pod, "Ready") == Some("True");
                let failed = matches!(namespace::phase(&pod), "Failed" | "Succeeded");
                if pod.metadata.deletion_timestamp.is_some() || !(ready || failed) {
                    return Ok(false);
                }
                ensure!(!failed, "{name} has ended by itself: {:?}", pod.status);
                let Some(begun) = self.alive.get_mut(&name).and_then(Option::take) else { return Ok(false) };
                self.run.starts.add(begun.elapsed());
                self.api.delete(&name, &DeleteParams::default()).await.context("deleting a pod")?;
                Ok(true)
            }
            watcher::Event::Delete(pod) => {
                self.run.gone += u64::from(self.alive.remove(&pod.name_any()).is_some());
                Ok(true)
            }
            watcher::Event::Init | watcher::Event::InitDone => Ok(false),
        }
    }
}
