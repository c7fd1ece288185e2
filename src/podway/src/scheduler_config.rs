//! The scheduler's settings: what stands in its configuration file, and on its command line alike.
//!
//! One struct is both, so that neither can have what the other lacks. The flags are laid over the file, the
//! file over the defaults. An unknown field is an error that names it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use podway_scheduler::Config;
use serde::Deserialize;

use crate::commands::Hinted;

const API_VERSION: &str = "podway.dev/v1alpha1";
const KIND: &str = "SchedulerConfiguration";
/// The longest backoff that is taken, in seconds: a day.
const LONGEST: u32 = 86_400;

/// The settings; what is absent is left as it is.
#[derive(Debug, Default, clap::Args, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Settings {
    /// Of the file alone.
    #[arg(skip)]
    api_version: String,
    /// Of the file alone.
    #[arg(skip)]
    kind: String,
    /// The kubeconfig; as kubectl finds it if not given (in a pod: its service account).
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Pods with this schedulerName are ours [default: podway]; may be given more than once, and be
    /// default-scheduler.
    #[arg(long = "scheduler-name", value_name = "NAME")]
    scheduler_names: Option<Vec<String>>,
    /// Where /livez, /readyz and /metrics are served, without authentication [default: 127.0.0.1:10351];
    /// 0 for nowhere.
    #[arg(long, value_name = "IP:PORT")]
    metrics_bind_address: Option<String>,
    /// How long a pod that could not be placed waits at first [default: 1].
    #[arg(long, value_name = "SECONDS")]
    pod_initial_backoff_seconds: Option<u32>,
    /// How long it waits at most, the time being doubled at each attempt [default: 10].
    #[arg(long, value_name = "SECONDS")]
    pod_max_backoff_seconds: Option<u32>,
    /// How many bindings are written at once [default: 32].
    #[arg(long, value_name = "N")]
    bind_lanes: Option<usize>,
}

impl Settings {
    /// The settings of the command line over those of `file`, where one is named.
    pub(crate) fn over(self, file: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = file else { return Ok(self) };
        let name = path.display();
        let hint = "config/scheduler.yaml has every field that podway scheduler heeds";
        let text = std::fs::read_to_string(path)
            .with_context(|| Hinted::new(format!("reading the configuration {name}"), hint))?;
        let read = read(&text)
            .with_context(|| Hinted::new(format!("the configuration {name} is not valid"), hint))?;
        Ok(self.merged(read))
    }

    fn merged(self, file: Settings) -> Self {
        Settings {
            api_version: file.api_version,
            kind: file.kind,
            kubeconfig: self.kubeconfig.or(file.kubeconfig),
            scheduler_names: self.scheduler_names.or(file.scheduler_names),
            metrics_bind_address: self.metrics_bind_address.or(file.metrics_bind_address),
            pod_initial_backoff_seconds: self
                .pod_initial_backoff_seconds
                .or(file.pod_initial_backoff_seconds),
            pod_max_backoff_seconds: self.pod_max_backoff_seconds.or(file.pod_max_backoff_seconds),
            bind_lanes: self.bind_lanes.or(file.bind_lanes),
        }
    }

    /// The scheduler's configuration, each value checked.
    pub(crate) fn config(&self) -> anyhow::Result<Config> {
        let mut config = Config::default();
        let wrong = |field: &str, fix: &str| {
            Hinted::new(format!("{field} is not valid"), format!("{fix}; see config/scheduler.yaml"))
        };
        if let Some(names) = &self.scheduler_names {
            if names.is_empty() || names.iter().any(|name| name.trim() != name || name.is_empty()) {
                let fix = "name at least one scheduler, none of them empty or with space around it";
                return Err(wrong(&format!("schedulerNames {names:?}"), fix).into());
            }
            config.scheduler_names.clone_from(names);
        }
        if let Some(text) = &self.metrics_bind_address {
            config.serve = match text.as_str() {
                "0" => None,
                text => Some(text.parse::<SocketAddr>().with_context(|| {
                    wrong(&format!("metricsBindAddress {text:?}"), "give IP:PORT, or 0 for nowhere")
                })?),
            };
        }
        let micros = |seconds: u32| i64::from(seconds) * 1_000_000;
        for (name, seconds, to) in [
            ("podInitialBackoffSeconds", self.pod_initial_backoff_seconds, &mut config.backoff.initial),
            ("podMaxBackoffSeconds", self.pod_max_backoff_seconds, &mut config.backoff.max),
        ] {
            match seconds {
                Some(seconds @ 1..=LONGEST) => *to = micros(seconds),
                Some(seconds) => {
                    let fix = format!("give 1 to {LONGEST} seconds");
                    return Err(wrong(&format!("{name} {seconds}"), &fix).into());
                }
                None => {}
            }
        }
        let (first, longest) = (config.backoff.initial / 1_000_000, config.backoff.max / 1_000_000);
        if first > longest {
            let fix = format!("lower it to {longest}, or raise podMaxBackoffSeconds to {first}");
            return Err(wrong(&format!("podInitialBackoffSeconds {first}"), &fix).into());
        }
        match self.bind_lanes {
            Some(lanes @ 1..=1024) => config.bind_lanes = lanes,
            Some(lanes) => return Err(wrong(&format!("bindLanes {lanes}"), "give 1 to 1024").into()),
            None => {}
        }
        Ok(config)
    }
}

fn read(text: &str) -> anyhow::Result<Settings> {
    let file: Settings = serde_yaml::from_str(text)?;
    anyhow::ensure!(
        (file.api_version.as_str(), file.kind.as_str()) == (API_VERSION, KIND),
        "it is {:?} {:?}, not {API_VERSION} {KIND}",
        file.api_version,
        file.kind
    );
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: podway.dev/v1alpha1\nkind: SchedulerConfiguration\n";
    const FILE: &str = include_str!("../../../config/scheduler.yaml");

    fn of(fields: &str) -> anyhow::Result<Config> {
        read(&format!("{HEAD}{fields}"))?.config()
    }

    #[test]
    fn the_file_in_the_repository_sets_nothing_but_defaults() {
        let file = read(FILE).unwrap();
        assert!(file.kubeconfig.is_none());
        assert_eq!(file.config().unwrap(), Config::default());
        // What it shows as a comment reads as well.
        let shown = read(&FILE.replace("# kubeconfig:", "kubeconfig:")).unwrap();
        assert!(shown.kubeconfig.is_some());
    }

    #[test]
    fn what_is_set_is_taken_and_the_flags_go_before_it() {
        let file = "schedulerNames: [a, b]\nmetricsBindAddress: \"0\"\npodInitialBackoffSeconds: 2\n\
                    podMaxBackoffSeconds: 20\nbindLanes: 4\nkubeconfig: /k\n";
        let read = || read(&format!("{HEAD}{file}")).unwrap();
        let config = read().config().unwrap();
        assert_eq!(config.scheduler_names, ["a", "b"]);
        assert_eq!((config.serve, config.bind_lanes), (None, 4));
        assert_eq!((config.backoff.initial, config.backoff.max), (2_000_000, 20_000_000));
        let flags = Settings {
            scheduler_names: Some(vec!["c".to_owned()]),
            metrics_bind_address: Some("127.0.0.1:1".to_owned()),
            pod_initial_backoff_seconds: Some(3),
            kubeconfig: Some("/l".into()),
            ..Settings::default()
        };
        let merged = flags.merged(read());
        assert_eq!(merged.kubeconfig.as_deref(), Some(Path::new("/l")));
        let config = merged.config().unwrap();
        assert_eq!(config.scheduler_names, ["c"]);
        assert_eq!(config.serve, Some(SocketAddr::from(([127, 0, 0, 1], 1))));
        assert_eq!((config.backoff.initial, config.backoff.max), (3_000_000, 20_000_000));
        assert_eq!(config.bind_lanes, 4);
    }

    #[test]
    fn every_field_is_a_flag_and_the_other_way_round() {
        use clap::{Args as _, Command};
        let command = Settings::augment_args(Command::new("scheduler"));
        let mut flags: Vec<String> = command
            .get_arguments()
            .filter_map(|a| a.get_long())
            .map(|long| long.replace('-', "").to_lowercase())
            .collect();
        let mut fields: Vec<String> = FILE
            .lines()
            .map(|line| line.strip_prefix("# kube").map_or(line.to_owned(), |rest| format!("kube{rest}")))
            .filter_map(|line| Some(line.split_once(':')?.0.to_lowercase()))
            .filter(|key| key.chars().all(char::is_alphabetic) && key != "apiversion" && key != "kind")
            .map(|key| key.replace("schedulernames", "schedulername"))
            .collect();
        flags.sort();
        fields.sort();
        assert_eq!(flags, fields);
    }

    #[test]
    fn an_error_names_the_field_and_what_to_do() {
        let told = |error: &anyhow::Error| {
            let hint = error.downcast_ref::<Hinted>().map_or("", |h| h.hint.as_str());
            format!("{error:#} {hint}")
        };
        for (fields, field, fix) in [
            ("bindLane: 3", "bindLane", "bindLanes"),
            ("schedulerNames: []", "schedulerNames", "at least one"),
            ("schedulerNames: ['']", "schedulerNames", "empty"),
            ("metricsBindAddress: localhost", "metricsBindAddress", "IP:PORT"),
            ("podInitialBackoffSeconds: 0", "podInitialBackoffSeconds", "1 to"),
            ("podInitialBackoffSeconds: -1", "podInitialBackoffSeconds", "u32"),
            ("podInitialBackoffSeconds: 11", "podInitialBackoffSeconds", "podMaxBackoffSeconds to 11"),
            ("bindLanes: 0", "bindLanes", "1 to 1024"),
        ] {
            let text = told(&of(fields).unwrap_err());
            assert!(text.contains(field) && text.contains(fix), "{fields}: {text}");
        }
        let other = read("apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n");
        assert!(told(&other.unwrap_err()).contains(API_VERSION));
        assert!(told(&read("schedulerNames: [a]\n").unwrap_err()).contains("apiVersion"));
    }
}
