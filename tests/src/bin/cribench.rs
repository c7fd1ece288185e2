//! Measures podway's runtime and containerd, one after the other on one stage, over CRI alone: the same
//! registry, images, network plugins and runc. It prints the table of docs/performance.md.

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use podway_tests::cri::images::{self, BUSYBOX};
use podway_tests::cri::{Kind, Server, Stage};
use podway_tests::cribench::figures::{self, Figures};
use podway_tests::cribench::{calls, crowd, pulls};

/// Measure podway's runtime and containerd side by side and print the table of docs/performance.md.
#[derive(Parser)]
#[command(
    after_help = "Example:\n  podway-cribench\n  podway-cribench --only podway --count 5 --pods 10 --big-mib 0"
)]
struct Args {
    /// Only this server.
    #[arg(long, value_enum)]
    only: Option<Which>,
    /// How many pods live one by one.
    #[arg(long, default_value_t = 50)]
    count: usize,
    /// How many pods stand together, for parallel calls, memory and restart; at most 200.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=200))]
    pods: u16,
    /// How many calls are in flight where many are.
    #[arg(long, default_value_t = 10)]
    together: usize,
    /// How many small images are pulled, one by one and again together.
    #[arg(long, default_value_t = 40)]
    pulls: usize,
    /// The size of the large image in MiB, uncompressed; 0 leaves it out.
    #[arg(long, default_value_t = 1024)]
    big_mib: usize,
    /// Its layers.
    #[arg(long, default_value_t = 10)]
    layers: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    Podway,
    Containerd,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let work = tempfile::tempdir()?;
    eprintln!("building images");
    let mut images = images::plain(work.path()).await?;
    images.extend(pulls::small(args.pulls)?);
    if args.big_mib > 0 {
        images.push(pulls::big(args.layers, args.big_mib)?);
    }
    let stage = Stage::set(&images).await?;
    drop(images);
    let left_out = |kind| args.only.is_some_and(|only| (only == Which::Podway) != (kind == Kind::Podway));
    let (mut ours, mut theirs) = (Figures::default(), Figures::default());
    for (kind, figures) in [(Kind::Podway, &mut ours), (Kind::Containerd, &mut theirs)] {
        if left_out(kind) {
            continue;
        }
        let mut server = Server::start(&stage, kind).await?;
        let measured = measure(&mut server, &stage, &args, figures).await;
        if measured.is_err() {
            eprintln!("{}", std::fs::read_to_string(&server.log).unwrap_or_default());
        }
        // The pods are removed either way.
        let stopped = server.stop().await;
        measured.with_context(|| kind.name())?;
        stopped?;
    }
    println!("{}", figures::table(&ours, &theirs));
    Ok(())
}

async fn measure(
    server: &mut Server,
    stage: &Stage,
    args: &Args,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let name = server.kind.name();
    let mut cri = server.client().await?;
    cri.pull(BUSYBOX).await.context("PullImage of busybox")?;
    // The first pod makes the bridge and warms the caches; it does not count.
    calls::one_by_one(&cri, stage, 1).await?;
    eprintln!("{name}: {} pods one by one", args.count);
    calls::one_by_one(&cri, stage, args.count).await?.rows("one at a time", figures);
    eprintln!("{name}: {} pods, {} at a time", args.pods, args.together);
    crowd::measure(server, stage, (args.pods.into(), args.together), figures).await?;
    let mut cri = server.client().await?;
    eprintln!("{name}: pulls");
    pulls::measure_small(&mut cri, args.pulls, args.together, figures).await?;
    if args.big_mib > 0 {
        let size = format!("{} layers, {} MiB", args.layers, args.big_mib);
        pulls::measure_big(server, &size, figures).await?;
    }
    Ok(())
}
