//! How far image pulls have got, as the agent tells it ([`PATH`]) and the commands and the page show it.
//!
//! It is told live and kept nowhere: no write to the API server, no record. What a pull came to is the record of
//! the phase `ImagesPulled`. What is read here comes from a node, and is a stranger's text: every form of it here is safe on a terminal.

use crate::waterfall::escaped;
use serde::{Deserialize, Serialize};

/// Where the agent's server tells of pulls: a line of JSON ([`Pulls`]) whenever something has changed.
pub const PATH: &str = "/podway/pulls";

/// The most bytes that a line of it may have: a pull has some hundred bytes for each layer.
pub const LINE: usize = 1 << 20;

/// All that run, each whole, and once more each that has ended since the message before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulls {
    /// In the order in which they began.
    pub pulls: Vec<Pull>,
}

/// Where a pull stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Credentials, manifest, configuration.
    #[default]
    Resolving,
    /// Layers come.
    Fetching,
    /// They are made durable and entered.
    Storing,
    /// It is there.
    Done,
    /// It is not.
    Failed,
}

/// Where a layer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerState {
    /// It is not asked for yet.
    Waiting,
    /// It comes.
    Downloading,
    /// It has come and is being written.
    Unpacking,
    /// It is there.
    Done,
    /// Of another image, or of a pull before this one.
    AlreadyThere,
}

/// The pull of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pull {
    /// The image's full name.
    pub image: String,
    /// When it began, in nanoseconds of the Unix epoch.
    pub started_at: i64,
    /// Where it stands.
    pub phase: State,
    /// Why it failed.
    pub error: String,
    /// Bytes that must come, compressed.
    pub total_bytes: u64,
    /// Bytes that have come.
    pub received_bytes: u64,
    /// Over the last two seconds.
    pub bytes_per_second: u64,
    /// How long the rest takes at this rate.
    pub eta_milliseconds: Option<u64>,
    /// In the image's order; none until the manifest is here.
    pub layers: Vec<Layer>,
}

/// A layer of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Layer {
    /// Of the blob.
    pub digest: String,
    /// Compressed.
    pub size_bytes: u64,
    /// Of them, those that have come.
    pub received_bytes: u64,
    /// Where it stands.
    pub phase: LayerState,
}

impl Pull {
    /// Whether nothing more comes of it.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.phase, State::Done | State::Failed)
    }

    /// Whether it is the pull of what a pod calls `image`.
    #[must_use]
    pub fn is_of(&self, image: &str) -> bool {
        self.image == full(image)
    }

    /// What a bar of it shows: how many hundredths have come.
    #[must_use]
    pub fn percent(&self) -> u64 {
        percent(self.received_bytes, self.total_bytes)
    }

    /// Where it stands, in words and numbers.
    #[must_use]
    pub fn standing(&self) -> String {
        match self.phase {
            State::Resolving => "resolving".to_owned(),
            State::Storing => "storing".to_owned(),
            State::Failed => format!("failed: {}", clean(&self.error)),
            State::Done if self.total_bytes == 0 => "already there".to_owned(),
            State::Done => format!("done, {}", bytes(self.total_bytes)),
            State::Fetching => {
                let left = self
                    .eta_milliseconds
                    .map_or_else(String::new, |eta| format!("  {}.{} s left", eta / 1000, eta % 1000 / 100));
                let (got, all) = (bytes(self.received_bytes), bytes(self.total_bytes));
                format!("{:>3}%  {got} of {all}  {}/s{left}", self.percent(), bytes(self.bytes_per_second))
            }
        }
    }

    /// An image's line and those of its layers.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = format!("{}  {}\n", clean(&self.image), self.standing());
        if !self.has_ended() {
            out.extend(self.layers.iter().map(Layer::text));
        }
        out
    }
}

impl Layer {
    /// Where it stands.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self.phase {
            LayerState::Waiting => "waiting",
            LayerState::Downloading => "downloading",
            LayerState::Unpacking => "unpacking",
            LayerState::Done => "done",
            LayerState::AlreadyThere => "already there",
        }
    }

    /// Enough of its digest to tell it from others.
    #[must_use]
    pub fn short(&self) -> String {
        clean(&self.digest.chars().take("sha256:".len() + 12).collect::<String>())
    }

    fn text(&self) -> String {
        let share = match self.phase {
            LayerState::Downloading => format!("{:>3}%", percent(self.received_bytes, self.size_bytes)),
            _ => "    ".to_owned(),
        };
        format!("  {}  {:<13}  {share}  {}\n", self.short(), self.word(), bytes(self.size_bytes))
    }
}

/// The full name of what a pod calls `image`: a host, a repository, and a tag or a digest, as
/// `github.com/distribution/reference` completes them. What is no name at all stays as it is.
fn full(image: &str) -> String {
    let is_host = |part: &str| part.contains(['.', ':']) || part == "localhost";
    let (host, path) = match image.split_once('/') {
        Some((host, path)) if is_host(host) => (host, path),
        _ => ("docker.io", image),
    };
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    let library = if host == "docker.io" && !path.contains('/') { "library/" } else { "" };
    let is_tagged = path.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
    format!("{host}/{library}{path}{}", if is_tagged { "" } else { ":latest" })
}

/// On one line, without anything that moves a cursor.
fn clean(text: &str) -> String {
    escaped(&text.split_whitespace().collect::<Vec<_>>().join(" "), false)
}

/// `1.5 GiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
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
#[must_use]
pub fn percent(part: u64, whole: u64) -> u64 {
    part.min(whole).saturating_mul(100).checked_div(whole).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pull(phase: State) -> Pull {
        let of = |digest: char, received_bytes, phase: LayerState| Layer {
            digest: format!("sha256:{}", digest.to_string().repeat(64)),
            size_bytes: 3 << 20,
            received_bytes,
            phase,
        };
        Pull {
            image: "docker.io/library/app:1".to_owned(),
            started_at: 0,
            phase,
            error: String::new(),
            total_bytes: 6 << 20,
            received_bytes: 1536 << 10,
            bytes_per_second: 2_500_000,
            eta_milliseconds: Some(1890),
            layers: vec![
                of('a', 1536 << 10, LayerState::Downloading),
                of('b', 0, LayerState::Waiting),
                of('c', 0, LayerState::AlreadyThere),
            ],
        }
    }

    #[test]
    fn a_pull_is_a_line_and_its_layers() {
        assert_eq!(
            pull(State::Fetching).text(),
            "docker.io/library/app:1   25%  1.5 MiB of 6.0 MiB  2.3 MiB/s  1.8 s left\n  \
             sha256:aaaaaaaaaaaa  downloading     50%  3.0 MiB\n  \
             sha256:bbbbbbbbbbbb  waiting              3.0 MiB\n  \
             sha256:cccccccccccc  already there        3.0 MiB\n"
        );
        assert_eq!(pull(State::Done).text(), "docker.io/library/app:1  done, 6.0 MiB\n");
        let failed = Pull { error: "no\n\u{1b}[2J".to_owned(), ..pull(State::Failed) };
        let line = failed.text();
        assert!(line.contains("failed: no ") && !line.contains('\u{1b}'), "{line:?}");
        let there = Pull { total_bytes: 0, ..pull(State::Done) };
        assert_eq!(there.text(), "docker.io/library/app:1  already there\n");
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
    fn as_json_a_phase_is_a_word_and_it_comes_back() {
        let told = Pulls { pulls: vec![pull(State::Fetching)] };
        let value = serde_json::to_value(&told).unwrap();
        assert_eq!(
            (&value["pulls"][0]["phase"], &value["pulls"][0]["layers"][2]["phase"]),
            (&"fetching".into(), &"already_there".into())
        );
        assert_eq!(value["pulls"][0]["etaMilliseconds"], 1890);
        assert_eq!(serde_json::from_value::<Pulls>(value).unwrap(), told);
    }

    #[test]
    fn a_pods_image_is_found_by_any_of_its_names() {
        for (named, in_full) in [
            ("app", "docker.io/library/app:latest"),
            ("app:1", "docker.io/library/app:1"),
            ("docker.io/app:1", "docker.io/library/app:1"),
            ("index.docker.io/me/app", "docker.io/me/app:latest"),
            ("me/app", "docker.io/me/app:latest"),
            ("r.example/app", "r.example/app:latest"),
            ("localhost/a/b:2", "localhost/a/b:2"),
            ("r.example:5000/app", "r.example:5000/app:latest"),
            ("app@sha256:0", "docker.io/library/app@sha256:0"),
        ] {
            assert!(Pull { image: in_full.to_owned(), ..pull(State::Done) }.is_of(named), "{named}");
        }
        assert!(!pull(State::Done).is_of("app:2") && !pull(State::Done).is_of("r.example/app:1"));
    }
}
