//! Puts the commit into the binary, for `podway version`: what git says of the source, or `PODWAY_COMMIT` where
//! there is no repository (an archive, an image build). Without both it is `unknown`, never a guess.

use std::process::Command;

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

fn main() {
    println!("cargo::rerun-if-env-changed=PODWAY_COMMIT");
    // The log of HEAD grows with every commit and checkout; HEAD itself only changes with the branch.
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", file]) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let given = std::env::var("PODWAY_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = given.or_else(|| git(&["rev-parse", "HEAD"])).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=PODWAY_COMMIT={commit}");
}
