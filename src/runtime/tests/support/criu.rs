//! A `criu` that is new enough, and a runc whose `checkpoint` does what a test wants: so the steps around criu's are
//! tried on machines without it too. Freezing and thawing are runc's own.
#![allow(dead_code, reason = "each test crate uses its part")]

use super::node::Node;
use std::os::unix::fs::PermissionsExt as _;

/// A dump that succeeds: `$image` and `$work` are the directories of runc's command line.
pub const WRITES: &str = "echo pages >$image/pages-1.img; echo done >$work/dump.log";

/// Puts both before the node's own, `checkpoint` as a script of sh; gives the PATH for the runtime.
pub fn stand_in(node: &mut Node, checkpoint: &str) -> String {
    let dir = node.at("programs");
    std::fs::create_dir(&dir).unwrap();
    let program = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    program("criu", "echo 'Version: 4.0'".to_owned());
    let runc = node.config.runc.path.display().to_string();
    // --root R --log L checkpoint --leave-running --image-path I --work-path W ID
    let script =
        format!("[ \"$5\" = checkpoint ] || exec {runc} \"$@\"\nimage=$8 work=${{10}}\n{checkpoint}");
    node.config.runc.path = program("runc", script);
    format!("{}:{}", dir.display(), std::env::var("PATH").unwrap_or_default())
}
