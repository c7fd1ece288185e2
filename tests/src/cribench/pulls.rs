//! Pulls from the stage's registry: small images, and one of many layers and a gigabyte with its peak of memory.

use super::figures::{Figures, Times};
use crate::cri::{Cri, Server};
use anyhow::Context as _;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use podway_cluster::images::{Image, Layer, LayerBuilder, Run, image};
use std::time::{Duration, Instant};

/// The large image.
const BIG: &str = "registry.test/bench/big:1";
/// How often the large image is pulled.
const BIG_PULLS: usize = 3;
const MIB: usize = 1 << 20;

/// Bytes that no compressor makes less of (xorshift64*), from a seed: the same image each time.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.next().to_le_bytes());
        words.take(count.div_ceil(8)).flatten().take(count).collect()
    }

    /// Words of a small vocabulary: what programs and their data come to, gzip makes about a third of it.
    fn text(&mut self, count: usize) -> Vec<u8> {
        let mut text = Vec::with_capacity(count + 16);
        while text.len() < count {
            let word = self.next() % 4096;
            text.extend_from_slice(format!("w{word:03x}{} ", word % 7).as_bytes());
        }
        text.truncate(count);
        text
    }
}

/// A layer of `mib` MiB: half noise and half text, files of 1 MiB and, for an eighth of it, of 4 KiB.
fn layer(name: &str, mib: usize, noise: &mut Noise) -> anyhow::Result<Layer> {
    let mut layer = LayerBuilder::new();
    layer.dir(name, 0o755)?;
    let small = mib / 8;
    for n in 0..mib - small {
        let content = if n % 2 == 0 { noise.bytes(MIB) } else { noise.text(MIB) };
        layer.file(&format!("{name}/{n}"), 0o644, &content)?;
    }
    for n in 0..small * 256 {
        let content = if n % 2 == 0 { noise.bytes(4096) } else { noise.text(4096) };
        layer.file(&format!("{name}/s{n}"), 0o644, &content)?;
    }
    Ok(layer.finish()?)
}

/// The large image: `layers` layers, `mib` MiB in all.
///
/// # Errors
/// A defect of ours.
pub fn big(layers: usize, mib: usize) -> anyhow::Result<Image> {
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let made = (0..layers).map(|n| layer(&format!("layer{n}"), mib / layers.max(1), &mut noise));
    Ok(image(BIG, &made.collect::<anyhow::Result<Vec<_>>>()?, &Run::default())?)
}

fn small_name(n: usize) -> String {
    format!("registry.test/bench/small-{n}:1")
}

/// Small images of one layer, 1 MiB each.
///
/// # Errors
/// A defect of ours.
pub fn small(count: usize) -> anyhow::Result<Vec<Image>> {
    let mut noise = Noise(42);
    let one = |n| Ok(image(&small_name(n), &[layer("small", 1, &mut noise)?], &Run::default())?);
    (0..count).map(one).collect()
}

/// Pulls the `count` small images one by one, removes them, and pulls them `together` at a time.
///
/// # Errors
/// The server's.
pub async fn measure_small(
    cri: &mut Cri,
    count: usize,
    together: usize,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    for at_once in [1, together] {
        let pulls = (0..count).map(|n| {
            let mut cri = cri.clone();
            async move {
                let begun = Instant::now();
                cri.pull(&small_name(n)).await.context("PullImage")?;
                anyhow::Ok(begun.elapsed())
            }
        });
        let taken: Vec<Duration> = stream::iter(pulls).buffer_unordered(at_once).try_collect().await?;
        let mut times = Times::default();
        taken.into_iter().for_each(|time| times.add(time));
        let how = if at_once == 1 { "one at a time".to_owned() } else { format!("{at_once} in parallel") };
        figures.times(&format!("PullImage of 1 MiB, {how}"), "≥ 1.5×", &times);
        for n in 0..count {
            cri.remove_image(&small_name(n)).await.context("RemoveImage")?;
        }
    }
    Ok(())
}

/// Pulls the large image [`BIG_PULLS`] times, with the server's peak of memory during it.
///
/// # Errors
/// The server's, and where the kernel does not say.
pub async fn measure_big(server: &Server, size: &str, figures: &mut Figures) -> anyhow::Result<()> {
    let mut cri = server.client().await?;
    let pid = server.pid().context("the server has ended")?;
    let (mut times, mut peaks) = (Times::default(), Vec::new());
    for _ in 0..BIG_PULLS {
        // What was written before is the disk's business now, not this pull's.
        nix::unistd::sync();
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("resetting the peak of memory")?;
        let begun = Instant::now();
        cri.pull(BIG).await.context("PullImage")?;
        times.add(begun.elapsed());
        peaks.push(peak(pid)?);
        cri.remove_image(BIG).await.context("RemoveImage")?;
    }
    let seconds = times.at(0.5) / 1e3;
    let what = format!("pull and unpack of {size}, median of {BIG_PULLS}");
    figures.add(&what, "≥ 1.5×", format!("{seconds:.1} s"), seconds);
    let most = peaks.into_iter().max().unwrap_or_default();
    figures.memory("the runtime's peak RSS during it (VmHWM)", "≤ ¼", most);
    Ok(())
}

/// `VmHWM` of a process, in KiB.
fn peak(pid: u32) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.split_whitespace().next().context("no VmHWM")?.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_large_image_is_half_compressible_and_the_same_each_time() {
        let image = big(2, 16).unwrap();
        assert_eq!(image, big(2, 16).unwrap());
        let packed: usize = image.blobs.iter().map(|b| b.bytes.len()).sum();
        assert!((9 * MIB..14 * MIB).contains(&packed), "{packed}");
        assert_eq!(image.blobs.len(), 3);
    }

    #[test]
    fn this_process_has_a_peak() {
        assert!(peak(std::process::id()).unwrap() > 0);
    }
}
