//! A real Prometheus for a moment: it scrapes targets, and is asked what it has.

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

/// How long it may take until a query answers.
const LIMIT: Duration = Duration::from_secs(60);

/// What is scraped.
#[derive(Clone, Debug)]
pub struct Target {
    /// The job's name.
    pub job: &'static str,
    /// host:port.
    pub address: String,
    /// With these: HTTPS with a client certificate.
    pub tls: Option<Tls>,
}

/// Files in PEM.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The authority that signed the server's certificate; without one it is not looked at.
    pub ca: Option<PathBuf>,
    /// The client's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// One that runs; it is killed when this is dropped.
pub struct Prometheus {
    _process: Child,
    _dir: tempfile::TempDir,
    address: SocketAddr,
}

impl Prometheus {
    /// Starts one on loopback.
    ///
    /// # Errors
    /// When there is no prometheus, or it cannot be started.
    pub async fn start(targets: &[Target]) -> anyhow::Result<Self> {
        Self::with_rules(targets, &json!({"groups": []})).await
    }

    /// Starts one on loopback that follows rules as well.
    ///
    /// # Errors
    /// When there is no prometheus, or it cannot be started.
    pub async fn with_rules(targets: &[Target], rules: &Value) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let config = dir.path().join("prometheus.yml");
        // JSON is YAML.
        let rule_file = dir.path().join("rules.yml");
        std::fs::write(&rule_file, rules.to_string())?;
        let mut configured = configuration(targets);
        configured["rule_files"] = json!([rule_file]);
        std::fs::write(&config, configured.to_string())?;
        let log = std::fs::File::create(dir.path().join("log"))?;
        let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let process = Command::new("prometheus")
            .arg(flag("config.file", &config))
            .arg(flag("storage.tsdb.path", &dir.path().join("data")))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("starting prometheus; if it is missing: apt-get install prometheus")?;
        Ok(Prometheus { _process: process, _dir: dir, address })
    }

    /// The value of an instant query with one result. Prometheus tells nobody when it has scraped,
    /// so it is asked until it has one.
    ///
    /// # Errors
    /// When there is none after a minute, with its last answer.
    pub async fn value(&self, query: &str) -> anyhow::Result<f64> {
        let mut last = String::new();
        let ask = async {
            loop {
                // Refused while it starts.
                match self.values(query).await.map(|all| all.first().copied()) {
                    Ok(Some(found)) => return found,
                    Ok(None) => "nothing".clone_into(&mut last),
                    Err(error) => last = format!("{error:#}"),
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        match tokio::time::timeout(LIMIT, ask).await {
            Ok(found) => Ok(found),
            Err(_) => bail!("no answer to {query:?} after {LIMIT:?}; the last was {last}"),
        }
    }

    /// The values of an instant query's results, as of now.
    ///
    /// # Errors
    /// When Prometheus does not answer, or does not take the query.
    pub async fn values(&self, query: &str) -> anyhow::Result<Vec<f64>> {
        values(&self.ask(query).await?)
    }

    async fn ask(&self, query: &str) -> anyhow::Result<String> {
        let body = format!("query={}", encoded(query));
        let request = format!(
            "POST /api/v1/query HTTP/1.0\r\nContent-Type: application/x-www-form-urlencoded\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = tokio::net::TcpStream::connect(self.address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text.split_once("\r\n\r\n").context("an answer without a body")?.1.to_owned())
    }
}

fn configuration(targets: &[Target]) -> Value {
    let jobs: Vec<Value> = targets
        .iter()
        .map(|target| {
            let mut job = json!({
                // A job's name is its own; targets share the label.
                "job_name": target.address, "relabel_configs": [{"target_label": "job", "replacement": target.job}],
                "static_configs": [{"targets": [target.address]}],
                "scheme": if target.tls.is_some() { "https" } else { "http" }});
            if let Some(Tls { ca, cert, key }) = &target.tls {
                job["tls_config"] = match ca {
                    Some(ca) => json!({"ca_file": ca, "cert_file": cert, "key_file": key}),
                    None => json!({"insecure_skip_verify": true, "cert_file": cert, "key_file": key}),
                };
            }
            job
        })
        .collect();
    let global = json!({"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"});
    json!({"global": global, "scrape_configs": jobs})
}

/// The value of each result.
fn values(answer: &str) -> anyhow::Result<Vec<f64>> {
    let answer: Value = serde_json::from_str(answer).with_context(|| answer.to_owned())?;
    ensure!(answer["status"] == "success", "{answer}");
    let results = answer["data"]["result"].as_array().context("results")?;
    let value = |result: &Value| result["value"][1].as_str().context("a value")?.parse().context("a number");
    results.iter().map(value).collect()
}

/// As a form has it.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_queries_are_escaped() {
        let answer = r#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1.5,"3"]}]}}"#;
        assert_eq!(values(answer).unwrap(), [3.0]);
        assert_eq!(values(r#"{"status":"success","data":{"result":[]}}"#).unwrap(), [0.0; 0]);
        for bad in ["connection refused", r#"{"status":"error","data":{"result":[]}}"#] {
            assert!(values(bad).is_err(), "{bad}");
        }
        assert_eq!(encoded("up{a=\"b\"}"), "up%7Ba%3D%22b%22%7D");
    }
}
