//! What podway's programs are made of. Each program is one line in `main.rs` or `bin/`: `podway` is what people call;
//! the daemons are programs of their own, so that each has in memory what it needs itself: the runtime no API client,
//! nobody the page. `podway scheduler`, `agent` and `runtime` have the same command lines, and become them.

mod allocator;
mod cli;
mod commands;
mod daemon;
mod go_duration;
mod kube_scheduler_config;
mod kubelet_config;
mod kubernetes;
mod programs;
mod scheduler_config;

use std::process::ExitCode;

pub use cli::podway;
pub use commands::agent::program as agent;
pub use commands::runtime::program as runtime;
pub use commands::scheduler::program as scheduler;

/// The version and the commit, for `--version`.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("PODWAY_COMMIT"), ")");

/// A daemon's program: its command line is that of the sub-command of `podway`.
fn daemon<A: clap::Args>(name: &'static str, run: impl FnOnce(A) -> anyhow::Result<()>) -> ExitCode {
    let command = A::augment_args(clap::Command::new(name).version(VERSION));
    let args = A::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    end(run(args))
}

/// The end of a program: an error is told.
fn end(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

/// One line for the error with its causes, one for what to do about it.
#[expect(clippy::print_stderr, reason = "the program's own error output")]
fn report(error: &anyhow::Error) {
    let hint = error.downcast_ref::<commands::Hinted>().map(|h| h.hint.as_str());
    let line: Vec<String> = error.chain().map(|cause| commands::one_line(&cause.to_string())).collect();
    eprintln!("podway: {}", line.join(": "));
    eprintln!("hint: {}", hint.unwrap_or("see podway --help"));
}
