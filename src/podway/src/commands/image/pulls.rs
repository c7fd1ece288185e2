//! `podway image pulls`: how far the runtime's pulls have got; with `-w` as they go.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use anyhow::Context as _;
use podway_cri::runtime_v1::WatchPullsRequest;
use podway_flow::pulls::{Pull, Pulls, State};
use podway_runtime::config::Config;

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
            let told = Pulls::from(message);
            match self.output {
                Output::Json => print(&format!("{}\n", serde_json::to_string(&told)?))?,
                Output::Text if !self.watch => print(&text(&told.pulls))?,
                Output::Text => screen.show(&told.pulls)?,
            }
            let ended = told.pulls.iter().find(|pull| self.image.is_some() && pull.has_ended());
            if let Some(pull) = ended.filter(|_| self.watch) {
                return match pull.phase {
                    State::Failed => Err(Hinted::new(
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

/// What stands on a terminal and is drawn anew; ended pulls are written once and stay above it.
#[derive(Default)]
struct Screen {
    lines: usize,
}

impl Screen {
    fn show(&mut self, pulls: &[Pull]) -> anyhow::Result<()> {
        let (ended, running): (Vec<Pull>, Vec<Pull>) = pulls.iter().cloned().partition(Pull::has_ended);
        let lines = |pulls: &[Pull]| pulls.iter().map(Pull::text).collect::<String>();
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
        pulls => pulls.iter().map(Pull::text).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_nothing_is_pulled_is_said() {
        assert_eq!(text(&[]), "no pull runs\n");
        let pull =
            Pull { image: "docker.io/library/app:1".to_owned(), phase: State::Storing, ..Pull::default() };
        assert_eq!(text(&[pull.clone(), pull]), "docker.io/library/app:1  storing\n".repeat(2));
    }
}
