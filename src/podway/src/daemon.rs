//! What the long-running commands share: a log on standard error, an end on SIGTERM or SIGINT.

use std::ffi::OsStr;
use std::future::Future;
use std::io::IsTerminal as _;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Runs `work` until it ends; the token is cancelled by the first SIGTERM or SIGINT.
pub(crate) fn run<F>(work: impl FnOnce(CancellationToken) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let log = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(log).with(wanted(std::env::var_os("RUST_LOG").as_deref())?).init();
    crate::allocator::frugal();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let mut term = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        let mut int = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
        let token = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            token.cancel();
        });
        work(shutdown).await
    })
}

/// What is logged: `info`, and of each part that `RUST_LOG` names as much as it says (`podway_agent=debug,h2=warn`).
fn wanted(asked: Option<&OsStr>) -> anyhow::Result<Targets> {
    let asked = asked.unwrap_or_default().to_str().context("RUST_LOG is not UTF-8")?;
    if asked.is_empty() {
        return Ok(Targets::new().with_default(LevelFilter::INFO));
    }
    let targets: Targets = asked.parse().with_context(|| {
        format!("RUST_LOG={asked} is not valid: LEVEL or TARGET=LEVEL, by commas; a level is off, error, warn, info, debug or trace")
    })?;
    Ok(match targets.default_level() {
        Some(_) => targets,
        None => targets.with_default(LevelFilter::INFO),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    fn wanted(asked: &str) -> Targets {
        super::wanted(Some(OsStr::new(asked))).unwrap()
    }

    #[test]
    fn the_log_has_info_and_more_of_the_part_that_is_named() {
        assert!(super::wanted(None).unwrap().would_enable("h2", &Level::INFO));
        assert!(!wanted("").would_enable("podway_agent", &Level::DEBUG));
        let one = wanted("podway_agent=debug");
        assert!(one.would_enable("podway_agent::node", &Level::DEBUG));
        assert!(one.would_enable("podway_runtime", &Level::INFO));
        assert!(!one.would_enable("podway_runtime", &Level::DEBUG));
        assert!(!wanted("warn").would_enable("podway_agent", &Level::INFO));
        assert!(!wanted("off").would_enable("podway_agent", &Level::ERROR));
    }

    #[test]
    fn a_level_that_there_is_not_is_an_error_that_names_the_variable() {
        let error = super::wanted(Some(OsStr::new("podway_agent=loud"))).unwrap_err();
        assert!(error.to_string().contains("RUST_LOG=podway_agent=loud"), "{error}");
    }
}
