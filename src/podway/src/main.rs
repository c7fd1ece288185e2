//! podway, as people call it.

fn main() -> std::process::ExitCode {
    podway_programs::podway()
}
