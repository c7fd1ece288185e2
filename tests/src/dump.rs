//! What there is to see when a case has failed.

use crate::namespace::Ns;
use std::fs;

/// The last lines that are printed of each log.
const LINES: usize = 40;

/// Prints pods, events, flows and the daemons' last lines. Nothing in here fails: it tells what it can.
pub async fn namespace(ns: &Ns) {
    eprintln!("---- state of {} ----", ns.name);
    for args in [
        &["get", "pods", "-o", "wide"][..],
        &["get", "events", "--sort-by=.metadata.creationTimestamp"],
        &["get", "pods", "-o", "jsonpath={range .items[*]}{.metadata.name}{\" \"}{.status}{\"\\n\"}{end}"],
        &["get", "podflows"],
    ] {
        match ns.kubectl_any(args, "").await {
            Ok(answer) => eprintln!("$ kubectl {}\n{}{}", args.join(" "), answer.out, answer.err),
            Err(error) => eprintln!("$ kubectl {}: {error:#}", args.join(" ")),
        }
    }
    let Ok(logs) = fs::read_dir(ns.cluster.layout.logs()) else { return };
    for log in logs.flatten().map(|e| e.path()).filter(|p| is_ours(p)) {
        eprintln!("---- {} ----", log.display());
        let text = fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            eprintln!("{line}");
        }
    }
}

/// Of the control plane's logs there is too much.
fn is_ours(path: &std::path::Path) -> bool {
    path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("podway"))
}
