//! `podway image pulls`: how far the runtime's pulls have got; with `-w` as they go.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use anyhow::Context as _;
use podway_cri::runtime_v1::{LayerPhase, Pull, PullLayer, PullPhase, WatchPullsRequest};
use podway_runtime::config::Config;
use serde_json::{Value, json};

use crate::commands::{Hinted, Output, one_line, print};

/// Show how far the pulls of this node's runtime have got: bytes by layer, rate, what is left.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  podway image pulls\n  podway image pulls -w registry.example/team/app:1   # ends when that pull has; fails if it fails"
)]
pub(super) struct Args {
    /// Only pulls of this image.
    #[arg(value_name = "REF")]
    image: Option<String>,
    /// Go on as they go: until Ctrl-C, or until the pull of REF has ended.
    #[arg(short, long)]
    watch: bool,
    /// The runtime's socket; over the configuration's.
    #[arg(long, value_name = "unix:///PATH")]
    listen: Option<String>,
    /// The runtime's configuration (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

impl Args {
    /// Asks, and prints what is told.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let config = Config::of(self.config.as_deref())?;
        let endpoint = self.listen.unwrap_or(config.listen);
        let channel = podway_cri::client::connect(&endpoint).await?;
        let image = self.image.clone().unwrap_or_default();
        let request = WatchPullsRequest { image, once: !self.watch };
        let answer = podway_cri::client::pulls(channel).watch_pulls(request).await;
        let mut told = answer
            .map_err(|status| {
                let hint = "the socket must be that of podway's runtime, of this version";
                Hinted::new(one_line(&format!("{endpoint} says: {}", status.message())), hint)
            })?
            .into_inner();
        let mut screen = Screen::default();
        while let Some(message) = told.message().await.context("the runtime's answer broke off")? {
            match self.output {
                Output::Json => print(&format!(
                    "{}\n",
                    json!({"pulls": message.pulls.iter().map(value).collect::<Vec<_>>()})
                ))?,
                Output::Text if !self.watch => print(&text(&message.pulls))?,
                Output::Text => screen.show(&message.pulls)?,
            }
            let ended = message.pulls.iter().find(|pull| self.image.is_some() && has_ended(pull));
            if let Some(pull) = ended.filter(|_| self.watch) {
                return match pull.phase() {
                    PullPhase::PullFailed => Err(Hinted::new(
                        one_line(&pull.error),
                        format!("podway image explain {}", pull.image),
                    )
                    .into()),
                    _ => Ok(()),
                };
            }
        }
        Ok(())
    }
}

fn has_ended(pull: &Pull) -> bool {
    matches!(pull.phase(), PullPhase::PullDone | PullPhase::PullFailed)
}

/// What stands on a terminal and is drawn anew; ended pulls are written once and stay above it.
#[derive(Default)]
struct Screen {
    lines: usize,
}

impl Screen {
    fn show(&mut self, pulls: &[Pull]) -> anyhow::Result<()> {
        let (ended, running): (Vec<Pull>, Vec<Pull>) = pulls.iter().cloned().partition(has_ended);
        let lines = |pulls: &[Pull]| pulls.iter().map(block).collect::<String>();
        let (stays, moves) = (lines(&ended), lines(&running));
        if !std::io::stdout().is_terminal() {
            return print(&format!("{stays}{moves}"));
        }
        let back = match self.lines {
            0 => String::new(),
            n => format!("\u{1b}[{n}A\u{1b}[J"),
        };
        self.lines = moves.lines().count();
        print(&format!("{back}{stays}{moves}"))
    }
}

fn text(pulls: &[Pull]) -> String {
    match pulls {
        [] => "no pull runs\n".to_owned(),
        pulls => pulls.iter().map(block).collect(),
    }
}

/// `1.5 GiB`.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let (mut whole, mut rest, mut unit) = (count / 1024, count % 1024, 0);
    while whole >= 1024 && unit + 1 < UNITS.len() {
        (whole, rest, unit) = (whole / 1024, whole % 1024, unit + 1);
    }
    format!("{whole}.{} {}", rest * 10 / 1024, UNITS.get(unit).unwrap_or(&""))
}

/// Hundredths, rounded down; of nothing, all.
fn percent(part: u64, whole: u64) -> u64 {
    part.min(whole).saturating_mul(100).checked_div(whole).unwrap_or(100)
}

/// An image's line and those of its layers.
fn block(pull: &Pull) -> String {
    let mut out = format!("{}  ", one_line(&pull.image));
    match pull.phase() {
        PullPhase::PullResolving => out.push_str("resolving"),
        PullPhase::PullStoring => out.push_str("storing"),
        PullPhase::PullFailed => out.push_str(&format!("failed: {}", one_line(&pull.error))),
        PullPhase::PullDone if pull.total_bytes == 0 => out.push_str("already there"),
        PullPhase::PullDone => out.push_str(&format!("done, {}", bytes(pull.total_bytes))),
        PullPhase::PullFetching => {
            let (got, all) = (pull.received_bytes, pull.total_bytes);
            out.push_str(&format!("{:>3}%  {} of {}", percent(got, all), bytes(got), bytes(all)));
            out.push_str(&format!("  {}/s", bytes(pull.bytes_per_second)));
            if let Some(eta) = pull.eta_milliseconds {
                out.push_str(&format!("  {}.{} s left", eta / 1000, eta % 1000 / 100));
            }
        }
    }
    out.push('\n');
    if !has_ended(pull) {
        out.extend(pull.layers.iter().map(layer));
    }
    out
}

fn phase(of: LayerPhase) -> &'static str {
    match of {
        LayerPhase::LayerWaiting => "waiting",
        LayerPhase::LayerDownloading => "downloading",
        LayerPhase::LayerUnpacking => "unpacking",
        LayerPhase::LayerDone => "done",
        LayerPhase::LayerAlreadyThere => "already there",
    }
}

fn layer(layer: &PullLayer) -> String {
    let short: String = layer.digest.chars().take("sha256:".len() + 12).collect();
    let share = match layer.phase() {
        LayerPhase::LayerDownloading => format!("{:>3}%", percent(layer.received_bytes, layer.size_bytes)),
        _ => "    ".to_owned(),
    };
    format!("  {}  {:<13}  {share}  {}\n", one_line(&short), phase(layer.phase()), bytes(layer.size_bytes))
}

fn value(pull: &Pull) -> Value {
    let name = |text: &str, prefix: &str| text.trim_start_matches(prefix).to_lowercase();
    let layers = pull.layers.iter().map(|layer| {
        json!({
            "digest": layer.digest, "sizeBytes": layer.size_bytes, "receivedBytes": layer.received_bytes,
            "phase": name(layer.phase().as_str_name(), "LAYER_"),
        })
    });
    json!({
        "image": pull.image, "startedAt": pull.started_at, "error": pull.error,
        "phase": name(pull.phase().as_str_name(), "PULL_"),
        "totalBytes": pull.total_bytes, "receivedBytes": pull.received_bytes,
        "bytesPerSecond": pull.bytes_per_second, "etaMilliseconds": pull.eta_milliseconds,
        "layers": layers.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pull(phase: PullPhase) -> Pull {
        let of = |digest: char, received_bytes, phase: LayerPhase| PullLayer {
            digest: format!("sha256:{}", digest.to_string().repeat(64)),
            size_bytes: 3 << 20,
            received_bytes,
            phase: phase as i32,
        };
        Pull {
            image: "docker.io/library/app:1".to_owned(),
            phase: phase as i32,
            total_bytes: 6 << 20,
            received_bytes: 1536 << 10,
            bytes_per_second: 2_500_000,
            eta_milliseconds: Some(1890),
            layers: vec![
                of('a', 1536 << 10, LayerPhase::LayerDownloading),
                of('b', 0, LayerPhase::LayerWaiting),
                of('c', 0, LayerPhase::LayerAlreadyThere),
            ],
            ..Pull::default()
        }
    }

    #[test]
    fn a_pull_is_a_line_and_its_layers() {
        assert_eq!(
            block(&pull(PullPhase::PullFetching)),
            "docker.io/library/app:1   25%  1.5 MiB of 6.0 MiB  2.3 MiB/s  1.8 s left\n  \
             sha256:aaaaaaaaaaaa  downloading     50%  3.0 MiB\n  \
             sha256:bbbbbbbbbbbb  waiting              3.0 MiB\n  \
             sha256:cccccccccccc  already there        3.0 MiB\n"
        );
        assert_eq!(block(&pull(PullPhase::PullDone)), "docker.io/library/app:1  done, 6.0 MiB\n");
        let failed = Pull { error: "no\n\u{1b}[2J".to_owned(), ..pull(PullPhase::PullFailed) };
        let line = block(&failed);
        assert!(line.contains("failed: no ") && !line.contains('\u{1b}'), "{line:?}");
        assert_eq!(
            block(&Pull { total_bytes: 0, ..pull(PullPhase::PullDone) }),
            "docker.io/library/app:1  already there\n"
        );
        assert_eq!(text(&[]), "no pull runs\n");
    }

    #[test]
    fn sizes_have_a_unit_and_shares_a_bound() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1 << 20), "1.0 MiB");
        assert_eq!(bytes((3 << 30) + (1 << 29)), "3.5 GiB");
        assert_eq!(bytes(u64::MAX), "16383.9 PiB");
        assert_eq!((percent(1, 3), percent(5, 3), percent(0, 0)), (33, 100, 100));
    }

    #[test]
    fn as_json_a_phase_is_a_word() {
        let value = value(&pull(PullPhase::PullFetching));
        assert_eq!(
            (&value["phase"], &value["layers"][2]["phase"]),
            (&json!("fetching"), &json!("already_there"))
        );
        assert_eq!(value["etaMilliseconds"], 1890);
    }
}
