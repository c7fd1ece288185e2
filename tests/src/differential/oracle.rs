//! A stock kube-scheduler, and what it did: from the pods, and from its log.

use super::judge;
use super::ours::Scores;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use tokio::process::{Child, Command};

/// A stock scheduler that runs; it ends with this.
pub struct Stock {
    _child: Child,
    log: PathBuf,
    port: u16,
}

impl Stock {
    /// Starts one for `default-scheduler`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(program: &Path, (kubeconfig, config): (&Path, &Path), log: &Path) -> std::io::Result<Self> {
        let mut command = Command::new(program);
        command.arg("--config").arg(config).arg("--authentication-kubeconfig").arg(kubeconfig);
        command.arg("--authorization-kubeconfig").arg(kubeconfig);
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        command.arg("--bind-address=127.0.0.1").arg(format!("--secure-port={port}"));
        // Anybody on this machine may see the metrics; its certificate is one of its own making.
        command
            .arg("--authorization-always-allow-paths=/metrics")
            .arg("--cert-dir")
            .arg(log.with_extension("certs"));
        // The scores by plugin are logged at level 10, and only there. Batching would leave them out for
        // the second of two like pods.
        command.args(["-v=2", "--vmodule=schedule_one=10", "--feature-gates=OpportunisticBatching=false"]);
        let child = command.stderr(std::fs::File::create(log)?).kill_on_drop(true).spawn()?;
        Ok(Stock { _child: child, log: log.to_owned(), port })
    }

    /// Where the log is now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn position(&self) -> std::io::Result<u64> {
        Ok(std::fs::metadata(&self.log)?.len())
    }

    /// What its /metrics says.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        let mut config = kube::Config::new(format!("https://127.0.0.1:{}", self.port).parse()?);
        config.accept_invalid_certs = true;
        let request = http::Request::get("/metrics").body(Vec::new())?;
        Ok(kube::Client::try_from(config)?.request_text(request).await?)
    }

    /// The weighted scores of a pod's nodes, logged since `position`.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn scores(&self, pod: &str, position: u64) -> std::io::Result<Scores> {
        let mut file = std::fs::File::open(&self.log)?;
        file.seek(SeekFrom::Start(position))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok(scores(&text, pod))
    }
}

/// `key="value"` of a klog line.
fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (_, after) = line.split_once(&format!(" {key}=\""))?;
    after.split_once('"').map(|(value, _)| value)
}

fn scores(text: &str, pod: &str) -> Scores {
    let mut out = Scores::new();
    let lines = text.lines().filter(|l| l.contains("\"Plugin scored node for pod\""));
    for line in lines.filter(|l| field(l, "pod") == Some(pod)) {
        // Without claims it is 0 everywhere, and does not exist with us.
        if field(line, "plugin") == Some("DynamicResources") && line.trim_end().ends_with(" score=0") {
            continue;
        }
        let score = line.split_once(" score=").and_then(|(_, n)| n.trim().parse().ok());
        if let (Some(plugin), Some(node), Some(score)) = (field(line, "plugin"), field(line, "node"), score) {
            out.entry(node.to_owned()).or_default().insert(plugin.to_owned(), score);
        }
    }
    // An extender's score is logged as it came.
    let lines = text.lines().filter(|l| l.contains("\"Extender scored node for pod\""));
    for line in lines.filter(|l| field(l, "pod") == Some(pod)) {
        let score = line.split_once(" score=").and_then(|(_, n)| n.trim().parse::<i64>().ok());
        if let (Some(node), Some(score)) = (field(line, "node"), score) {
            let row = out.entry(node.to_owned()).or_default();
            row.insert(judge::NAME.to_owned(), score * judge::WEIGHT * 10);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_is_read() {
        let text = "I1128 17:28:10.1 9 schedule_one.go:982] \"Plugin scored node for pod\" pod=\"d/p\" \
                    plugin=\"ImageLocality\" node=\"n1\" score=7\n\
                    I1128 17:28:10.1 9 schedule_one.go:982] \"Plugin scored node for pod\" pod=\"d/q\" \
                    plugin=\"ImageLocality\" node=\"n1\" score=8\n\
                    I1128 17:28:10.1 9 schedule_one.go:1016] \"Extender scored node for pod\" pod=\"d/p\" \
                    extender=\"http://x\" node=\"n1\" score=3\n";
        assert_eq!(scores(text, "d/p")["n1"]["ImageLocality"], 7);
        assert_eq!(scores(text, "d/p")["n1"][judge::NAME], 60);
        assert_eq!(scores(text, "d/none").len(), 0);
    }
}
