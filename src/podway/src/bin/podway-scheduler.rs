//! podway-scheduler, the daemon: `podway scheduler` is the same.

fn main() -> std::process::ExitCode {
    podway_programs::scheduler()
}
