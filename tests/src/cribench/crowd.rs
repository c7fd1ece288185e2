//! What pods that stand cost: the memory of the server and of what watches each pod (our monitor, containerd's
//! shim), and how long the server takes until it is ready again after a restart.

use super::calls::{self, Calls};
use super::figures::{Figures, Times};
use crate::cri::{Server, Stage};
use crate::meter::{self, Memory};
use anyhow::Context as _;
use std::time::Duration;

/// How many restarts.
const RESTARTS: usize = 5;

/// Starts `count` pods, `together` at a time, measures, and ends them again.
///
/// # Errors
/// The server's.
pub async fn measure(
    server: &mut Server,
    stage: &Stage,
    (count, together): (usize, usize),
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let mut calls = Calls::default();
    let pods = calls::start_all(&server.client().await?, stage, count, together, &mut calls).await?;
    // What the burst has left on the heap goes as the server lets it go: a settled node is what counts.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let own = own(server)?;
    let mut rows = Figures::default();
    rows.memory(&format!("RSS of the runtime with {count} pods"), "≤ 25 MB", own.rss);
    rows.memory(&format!("PSS of the runtime with {count} pods"), "", own.pss);
    let helpers = helpers(server)?;
    let each = helpers.pss / helpers.processes.max(1);
    let shown = format!("{:.2} MiB ({} processes)", kib(each) / 1024.0, helpers.processes);
    rows.add("PSS of what watches a pod (monitor, shim), each", "≤ 0.5 MB", shown, kib(each));

    let mut times = Times::default();
    for _ in 0..RESTARTS {
        times.add(server.restart().await?);
    }
    rows.add(
        &format!("restart with {count} pods until ready, median of {RESTARTS}"),
        "< 300 ms",
        format!("{:.0} ms", times.at(0.5)),
        times.at(0.5),
    );
    // The old connection went with the old process.
    calls::end_all(&server.client().await?, pods, together, &mut calls).await?;
    calls.rows(&format!("{together} in parallel"), figures);
    figures.append(rows);
    Ok(())
}

fn kib(of: u64) -> f64 {
    f64::from(u32::try_from(of).unwrap_or(u32::MAX))
}

/// The memory of the server's process.
///
/// # Errors
/// When it has ended.
pub fn own(server: &Server) -> anyhow::Result<Memory> {
    let pid = server.pid().context("the server has ended")?;
    meter::of(pid).context("the server has ended")
}

/// The processes beside the server that name its directory: a monitor or a shim for each pod.
fn helpers(server: &Server) -> anyhow::Result<Memory> {
    let dir = server.dir.to_str().context("a path that is not UTF-8")?;
    let (all, own) = (meter::memory(dir), own(server)?);
    Ok(Memory { processes: all.processes - own.processes, rss: all.rss - own.rss, pss: all.pss - own.pss })
}
