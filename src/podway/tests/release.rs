//! What is released besides the binary: completions, manual pages, a version that says its commit, and an
//! archive with the krew manifest that fits it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends at what it did not expect")]

use podway_cluster::own;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn podway(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_podway")).args(args).output().unwrap()
}

fn out(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_version_says_its_commit() {
    let said: serde_json::Value = serde_json::from_str(&out(&podway(&["version", "-o", "json"]))).unwrap();
    assert_eq!(said["version"], env!("CARGO_PKG_VERSION"));
    let commit = said["gitCommit"].as_str().unwrap();
    assert!(
        commit == "unknown" || (commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit())),
        "{commit}"
    );
    assert!(out(&podway(&["version"])).contains(commit) && out(&podway(&["--version"])).contains(commit));
}

#[test]
fn completions_parse_and_know_the_commands() {
    let script = out(&podway(&["completions", "bash"]));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("podway.bash");
    std::fs::write(&file, script).unwrap();
    // What bash makes of `podway flow --sel<TAB>`.
    let ask = "source \"$0\"; COMP_WORDS=(podway flow --sel); COMP_CWORD=2; _podway podway --sel flow; echo \"${COMPREPLY[@]}\"";
    let answer = Command::new("bash").args(["-c", ask]).arg(&file).output().unwrap();
    assert_eq!(out(&answer).trim(), "--selector");
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(out(&podway(&["completions", shell])).contains("blame"), "{shell}");
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let directory = tempfile::tempdir().unwrap();
    out(&podway(&["man", directory.path().to_str().unwrap()]));
    for page in ["podway", "podway-up", "podway-flow", "podway-flow-stats", "podway-ui", "podway-runtime"] {
        let text = std::fs::read_to_string(directory.path().join(format!("{page}.1"))).unwrap();
        assert!(text.contains(".TH") && text.contains(".SH SYNOPSIS"), "{page}");
    }
    assert!(!podway(&["man", "/proc/nowhere"]).status.success());
}

#[test]
fn the_archive_is_reproducible_and_the_krew_manifest_fits_it() {
    let staged = tempfile::tempdir().unwrap();
    // What is packed is asked for its pages and its version; a script that passes that on is packed faster.
    let script = format!("#!/bin/sh\nexec {:?} \"$@\"\n", env!("CARGO_BIN_EXE_podway"));
    for program in own::BESIDE.iter().chain(&["podway"]) {
        let path = staged.path().join(program);
        std::fs::write(&path, &script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let sums = directories.each_ref().map(|directory| {
        let mut pack = Command::new(root().join("packaging/release"));
        pack.arg(directory.path()).arg("https://example.com/dl").env("PODWAY_BIN_DIR", staged.path());
        out(&pack.output().unwrap()).split_whitespace().last().unwrap().to_owned()
    });
    assert_eq!(sums[0], sums[1]);
    let text = std::fs::read_to_string(directories[0].path().join("podway.yaml")).unwrap();
    assert!(!text.contains('@'), "{text}");
    let manifest: serde_json::Value = serde_yaml::from_str(&text).unwrap();
    assert_eq!(manifest["kind"], "Plugin");
    assert_eq!(manifest["spec"]["version"], concat!("v", env!("CARGO_PKG_VERSION")));
    let platform = &manifest["spec"]["platforms"][0];
    assert_eq!(platform["sha256"], sums[0]);
    let uri = platform["uri"].as_str().unwrap();
    let archive = directories[0].path().join(uri.strip_prefix("https://example.com/dl/").unwrap());
    let listed = out(&Command::new("tar").arg("tzf").arg(archive).output().unwrap());
    for file in platform["files"].as_array().unwrap() {
        assert!(listed.lines().any(|line| line == file["from"].as_str().unwrap()), "{file}: {listed}");
    }
    assert!(listed.contains("podway/completions/podway.fish") && listed.contains("podway/man/podway-flow.1"));
}

#[test]
fn a_program_that_is_linked_to_libraries_is_not_released() {
    let directory = tempfile::tempdir().unwrap();
    // The programs of the tests are.
    let built = Path::new(env!("CARGO_BIN_EXE_podway")).parent().unwrap();
    let mut pack = Command::new(root().join("packaging/release"));
    let packed = pack.arg(directory.path()).env("PODWAY_BIN_DIR", built).output().unwrap();
    let said = String::from_utf8_lossy(&packed.stdout);
    assert!(!packed.status.success() && said.contains("podway is linked to libraries"), "{said}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is packed");
}
