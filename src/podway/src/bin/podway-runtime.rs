//! podway-runtime, the daemon: `podway runtime` is the same.

fn main() -> std::process::ExitCode {
    podway_programs::runtime()
}
