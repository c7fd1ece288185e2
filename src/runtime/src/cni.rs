//! CNI: the first network configuration of a directory, its plugins executed as the spec says.
//!
//! ADD runs the plugins in order, each given the result of the one before; DEL in reverse order,
//! each given the cached result of ADD. A plugin is a process with its configuration on stdin and
//! its result on stdout; what it says on stderr is part of the error.

use serde_json::{Map, Value, json};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;

/// The interface's name inside a pod.
pub const IFNAME: &str = "eth0";

/// How plugins are run.
#[derive(Clone, Copy, Debug)]
pub struct Runner<'a> {
    /// Where they are, in order.
    pub bin_dirs: &'a [PathBuf],
    /// How long one plugin may take; it is killed then.
    pub timeout: Duration,
}

/// A network: an ordered list of plugins. It is journalled with what it was used for, so that DEL
/// is given what ADD was given even if the file on disk has changed since.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// The version that its plugins are spoken to in.
    pub cni_version: String,
    plugins: Vec<Map<String, Value>>,
}

/// What one plugin took.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Timing {
    /// The plugin's type.
    pub plugin: String,
    /// µs from exec to exit.
    pub micros: u64,
}

/// What ADD gave.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Added {
    /// The last plugin's result, for CHECK and DEL.
    pub result: Value,
    /// The addresses, without prefix length, in the plugins' order.
    pub ips: Vec<String>,
    /// Per plugin that was run.
    pub timings: Vec<Timing>,
}

/// Whose network it is.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The sandbox' id.
    pub container_id: String,
    /// The pinned namespace; `None` when it is gone (only DEL takes that).
    pub netns: Option<PathBuf>,
    /// Pod name, namespace and uid.
    pub pod: (String, String, String),
    /// For the `portMappings` capability: objects of hostPort, containerPort, protocol, hostIP.
    pub port_mappings: Vec<Value>,
}

/// Why a network was not configured.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// No configuration.
    #[error("no network configuration (.conflist, .conf) in {0}: install one, or set [cni] conf_dir")]
    NoConfig(PathBuf),
    /// The configuration does not read.
    #[error("the network configuration {0} is not valid: {1}")]
    Invalid(PathBuf, String),
    /// The directory or file cannot be read.
    #[error("cannot read the network configuration {0}")]
    Read(PathBuf, #[source] io::Error),
    /// A plugin is not installed.
    #[error("cni plugin {0:?} is in none of {1:?}: install it, or set [cni] bin_dirs")]
    NoPlugin(String, Vec<PathBuf>),
    /// A plugin could not be run.
    #[error("cannot run cni plugin {0:?}")]
    Run(String, #[source] io::Error),
    /// A plugin took too long and was killed.
    #[error(
        "cni plugin {0:?} did not end {1} within {2} s and was killed; [cni] timeout_seconds sets the limit"
    )]
    Timeout(String, &'static str, u64),
    /// A plugin failed.
    #[error("cni plugin {plugin:?} failed {command}: {message}")]
    Plugin {
        /// Its type.
        plugin: String,
        /// ADD, DEL or CHECK.
        command: &'static str,
        /// What it said: its error object's msg and details, and stderr.
        message: String,
    },
}

impl Network {
    /// Reads the first configuration of `dir` by name, as other runtimes choose it.
    ///
    /// # Errors
    /// [`CniError`] when there is none or it is not valid.
    pub fn load(dir: &Path) -> Result<Self, CniError> {
        let entries = std::fs::read_dir(dir).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => CniError::NoConfig(dir.to_owned()),
            _ => CniError::Read(dir.to_owned(), e),
        })?;
        let mut files: Vec<PathBuf> = entries
            .filter_map(Result::ok)
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|x| x == "conflist" || x == "conf" || x == "json"))
            .collect();
        files.sort();
        let file = files.into_iter().next().ok_or_else(|| CniError::NoConfig(dir.to_owned()))?;
        let text = std::fs::read(&file).map_err(|e| CniError::Read(file.clone(), e))?;
        Network::parse(&text).map_err(|why| CniError::Invalid(file, why))
    }

    /// Reads a conflist, or a single plugin's conf.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let conf: Map<String, Value> = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        let text_of = |key: &str| conf.get(key).and_then(Value::as_str).map(str::to_owned);
        let name = text_of("name").filter(|n| !n.is_empty()).ok_or("name is missing")?;
        let cni_version = text_of("cniVersion").unwrap_or_else(|| "0.4.0".to_owned());
        let plugins: Vec<Map<String, Value>> = match conf.get("plugins") {
            Some(Value::Array(list)) => list
                .iter()
                .map(|p| p.as_object().cloned().ok_or("plugins holds something that is no object"))
                .collect::<Result<_, _>>()?,
            Some(_) => return Err("plugins is not a list".to_owned()),
            None => vec![conf.clone()],
        };
        if plugins.is_empty() {
            return Err("plugins is empty".to_owned());
        }
        for plugin in &plugins {
            let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
            if kind.is_empty() || kind.contains('/') || kind == ".." {
                return Err(format!("plugin type {kind:?} is not a file name"));
            }
        }
        Ok(Network { name, cni_version, plugins })
    }

    /// Whether every plugin is installed. Asked before ADD: what no plugin was run for owes no DEL,
    /// and a DEL could not be run either.
    ///
    /// # Errors
    /// [`CniError::NoPlugin`].
    pub fn installed(&self, bin_dirs: &[PathBuf]) -> Result<(), CniError> {
        self.plugins.iter().try_for_each(|p| find(bin_dirs, plugin_type(p)).map(drop))
    }

    /// One plugin's stdin.
    fn stdin(&self, plugin: &Map<String, Value>, prev: Option<&Value>, attachment: &Attachment) -> Value {
        let mut conf = plugin.clone();
        conf.insert("name".to_owned(), json!(self.name));
        conf.insert("cniVersion".to_owned(), json!(self.cni_version));
        let capable = |c: &str| plugin.get("capabilities").and_then(|v| v.get(c)) == Some(&json!(true));
        conf.remove("capabilities");
        if capable("portMappings") && !attachment.port_mappings.is_empty() {
            conf.insert("runtimeConfig".to_owned(), json!({ "portMappings": attachment.port_mappings }));
        }
        if let Some(prev) = prev {
            conf.insert("prevResult".to_owned(), prev.clone());
        }
        Value::Object(conf)
    }

    /// ADD: every plugin in order.
    ///
    /// # Errors
    /// The first plugin's that failed; the caller owes a DEL.
    pub async fn add(&self, run: Runner<'_>, attachment: &Attachment) -> Result<Added, CniError> {
        let mut added = Added::default();
        let mut prev: Option<Value> = None;
        for plugin in self.plugins.iter().filter(|p| !idle(p, attachment)) {
            let began = Instant::now();
            let stdin = self.stdin(plugin, prev.as_ref(), attachment);
            let kind = plugin_type(plugin);
            let result = exec(run, kind, "ADD", &stdin, attachment).await?;
            let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            added.timings.push(Timing { plugin: kind.to_owned(), micros });
            prev = Some(result);
        }
        added.result = prev.unwrap_or(Value::Null);
        added.ips = ips(&added.result);
        Ok(added)
    }

    /// DEL: every plugin in reverse; all are run even if one fails, the first failure is returned.
    ///
    /// # Errors
    /// The first plugin's that failed; DEL may be repeated.
    pub async fn del(
        &self,
        run: Runner<'_>,
        attachment: &Attachment,
        cached: Option<&Value>,
    ) -> Result<(), CniError> {
        let mut first = Ok(());
        for plugin in self.plugins.iter().rev().filter(|p| !idle(p, attachment)) {
            let stdin = self.stdin(plugin, cached, attachment);
            let result = exec(run, plugin_type(plugin), "DEL", &stdin, attachment).await;
            if let (Ok(()), Err(error)) = (&first, result) {
                first = Err(error);
            }
        }
        first
    }

    /// CHECK: every plugin in order, given the cached result.
    ///
    /// # Errors
    /// The first plugin's that found something wrong.
    pub async fn check(
        &self,
        run: Runner<'_>,
        attachment: &Attachment,
        cached: &Value,
    ) -> Result<(), CniError> {
        for plugin in self.plugins.iter().filter(|p| !idle(p, attachment)) {
            let stdin = self.stdin(plugin, Some(cached), attachment);
            exec(run, plugin_type(plugin), "CHECK", &stdin, attachment).await?;
        }
        Ok(())
    }
}

/// Whether there is nothing for the plugin to do: `portmap` without port mappings hands the result
/// on and touches nothing (its `main.go`, cmdAdd), so there is nothing for a DEL to undo either: the
/// mappings are the sandbox', journalled with it, and the same for both. Starting the process takes
/// longer than all that it does, and its DEL lists iptables chains that were never made.
fn idle(plugin: &Map<String, Value>, attachment: &Attachment) -> bool {
    plugin_type(plugin) == "portmap" && attachment.port_mappings.is_empty()
}

fn plugin_type(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// The addresses of a result, without their prefix length.
#[must_use]
pub fn ips(result: &Value) -> Vec<String> {
    let list = result.get("ips").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    list.iter()
        .filter_map(|ip| ip.get("address")?.as_str())
        .filter_map(|a| a.split('/').next()?.parse::<std::net::IpAddr>().ok())
        .map(|ip| ip.to_string())
        .collect()
}

fn find(bin_dirs: &[PathBuf], plugin: &str) -> Result<PathBuf, CniError> {
    let mut candidates = bin_dirs.iter().map(|d| d.join(plugin));
    candidates.find(|p| p.is_file()).ok_or_else(|| CniError::NoPlugin(plugin.to_owned(), bin_dirs.to_vec()))
}

async fn exec(
    runner: Runner<'_>,
    plugin: &str,
    command: &'static str,
    stdin: &Value,
    attachment: &Attachment,
) -> Result<Value, CniError> {
    let Runner { bin_dirs, timeout } = runner;
    let binary = find(bin_dirs, plugin)?;
    let run = |e| CniError::Run(plugin.to_owned(), e);
    let (name, namespace, uid) = &attachment.pod;
    let path = std::env::join_paths(bin_dirs).map_err(|e| run(io::Error::other(e)))?;
    let mut child = tokio::process::Command::new(&binary)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", &attachment.container_id)
        .env("CNI_NETNS", attachment.netns.as_deref().unwrap_or(Path::new("")))
        .env("CNI_IFNAME", IFNAME)
        .env("CNI_PATH", path)
        .env(
            "CNI_ARGS",
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={uid}",
                attachment.container_id
            ),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(run)?;
    let mut pipe = child.stdin.take().ok_or_else(|| run(io::ErrorKind::BrokenPipe.into()))?;
    let document = stdin.to_string();
    // A plugin that ends without reading its stdin breaks the pipe: its exit code tells more.
    let write = async move { pipe.write_all(document.as_bytes()).await };
    // Dropping the child kills it.
    let both = async { tokio::join!(write, child.wait_with_output()) };
    let (written, output) = tokio::time::timeout(timeout, both)
        .await
        .map_err(|_| CniError::Timeout(plugin.to_owned(), command, timeout.as_secs()))?;
    let output = output.map_err(run)?;
    if let (Err(e), true) = (written, output.status.success()) {
        return Err(run(e));
    }
    if output.status.success() {
        if output.stdout.iter().all(u8::is_ascii_whitespace) {
            return Ok(Value::Null);
        }
        return serde_json::from_slice(&output.stdout).map_err(|e| CniError::Plugin {
            plugin: plugin.to_owned(),
            command,
            message: format!("its result is not JSON: {e}"),
        });
    }
    Err(CniError::Plugin { plugin: plugin.to_owned(), command, message: failure(&output) })
}

/// A failed plugin's words: the error object of the spec, then stderr.
fn failure(output: &std::process::Output) -> String {
    let error: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let parts: Vec<&str> = [
        error["msg"].as_str().unwrap_or_default(),
        error["details"].as_str().unwrap_or_default(),
        stderr.trim(),
    ]
    .into_iter()
    .filter(|p| !p.is_empty())
    .collect();
    let message = if parts.is_empty() { output.status.to_string() } else { parts.join("; ") };
    podway_flow::record::bounded(&message, podway_flow::Record::MESSAGE_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        Attachment {
            container_id: "c1".to_owned(),
            netns: Some(PathBuf::from("/ns")),
            pod: ("p".to_owned(), "n".to_owned(), "u".to_owned()),
            port_mappings: vec![json!({"hostPort": 80})],
        }
    }

    #[test]
    fn portmap_is_run_for_ports_only() {
        let network = Network::parse(br#"{"name":"x","plugins":[{"type":"bridge"},{"type":"portmap"}]}"#);
        let network = network.unwrap();
        let with = attachment();
        let without = Attachment { port_mappings: Vec::new(), ..attachment() };
        let idle = |a: &Attachment| network.plugins.iter().map(|p| idle(p, a)).collect::<Vec<_>>();
        assert_eq!((idle(&with), idle(&without)), (vec![false, false], vec![false, true]));
    }

    #[test]
    fn a_configuration_is_parsed_and_bad_ones_say_why() {
        let single = Network::parse(br#"{"name":"x","type":"bridge"}"#).unwrap();
        assert_eq!((single.name.as_str(), single.plugins.len()), ("x", 1));
        for (bad, why) in [
            (r#"{"type":"bridge"}"#, "name"),
            (r#"{"name":"x","plugins":[]}"#, "empty"),
            (r#"{"name":"x","plugins":[{"type":"../sh"}]}"#, "file name"),
            (r#"{"name":"x","plugins":[1]}"#, "no object"),
        ] {
            assert!(Network::parse(bad.as_bytes()).unwrap_err().contains(why), "{bad}");
        }
    }

    #[tokio::test]
    async fn plugins_are_chained_and_their_words_reach_the_error() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let script = |name: &str, body: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\ncat > {}/{name}.in\n{body}\n", dir.path().display()))
                .unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        script("one", r#"echo '{"ips":[{"address":"10.1.0.2/24"}]}'"#);
        script("two", r#"echo '{"ips":[{"address":"10.1.0.2/24"},{"address":"fd00::2/64"}]}'"#);
        script("bad", r#"echo '{"code":11,"msg":"no address left"}'; echo boo >&2; exit 1"#);
        let bins = [dir.path().to_owned()];
        let run = Runner { bin_dirs: &bins, timeout: Duration::from_secs(10) };
        let network = Network::parse(
            br#"{"name":"x","cniVersion":"1.0.0","plugins":[{"type":"one"},{"type":"two","capabilities":{"portMappings":true}}]}"#,
        )
        .unwrap();
        let added = network.add(run, &attachment()).await.unwrap();
        assert_eq!(added.ips, ["10.1.0.2", "fd00::2"]);
        assert_eq!(added.timings.len(), 2);
        let stdin: Value =
            serde_json::from_slice(&std::fs::read(dir.path().join("two.in")).unwrap()).unwrap();
        assert_eq!(stdin["prevResult"]["ips"][0]["address"], "10.1.0.2/24");
        assert_eq!(stdin["runtimeConfig"]["portMappings"][0]["hostPort"], 80);
        let bad = Network::parse(br#"{"name":"x","type":"bad"}"#).unwrap();
        let error = bad.add(run, &attachment()).await.unwrap_err().to_string();
        assert!(error.contains("no address left") && error.contains("boo"), "{error}");
        script("slow", "exec sleep 60");
        let slow = Network::parse(br#"{"name":"x","type":"slow"}"#).unwrap();
        let short = Runner { timeout: Duration::from_millis(100), ..run };
        assert!(matches!(slow.add(short, &attachment()).await, Err(CniError::Timeout(..))));
        let missing = Network::parse(br#"{"name":"x","type":"none"}"#).unwrap();
        assert!(matches!(missing.add(run, &attachment()).await, Err(CniError::NoPlugin(..))));
    }
}
