//! podway-agent, the daemon: `podway agent` is the same.

fn main() -> std::process::ExitCode {
    podway_programs::agent()
}
