//! The scheduler's settings: what stands in its configuration file, and on its command line alike.
//!
//! One struct is both, so that neither can have what the other lacks. The flags are laid over the file, the
//! file over the defaults. An unknown field is an error that names it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use podway_api::ProfileSpec;
use podway_scheduler::Config;
use podway_scheduler::leader::LeaderElection;
use serde::Deserialize;

use crate::commands::Hinted;
use crate::go_duration::GoDuration;
use crate::kube_scheduler_config::extenders::{self, Extender};
use crate::kube_scheduler_config::{self as kube, KubeSchedulerConfiguration, KubeSchedulerProfile};

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
    /// Where decisions, queue and snapshot are shown: a socket that only this user and root can open
    /// [default: nowhere].
    #[arg(long, value_name = "PATH")]
    debug_socket: Option<PathBuf>,
    /// Where the run is recorded, for podway replay: a file that is not there yet [default: nowhere].
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Bind nothing: compare what another scheduler does with what this one would do [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    shadow: Option<bool>,
    #[command(flatten)]
    #[serde(default)]
    leader_election: Election,
    /// Of the file alone: profiles as upstream's file has them, in the place of schedulerNames.
    #[arg(skip)]
    profiles: Option<Vec<KubeSchedulerProfile>>,
    /// The same, of upstream's file.
    #[arg(skip)]
    #[serde(skip)]
    of_kube: Option<Vec<(String, ProfileSpec)>>,
    /// Of the file alone: who else is asked, as upstream's file has it.
    #[arg(skip)]
    #[serde(default)]
    extenders: Vec<Extender>,
}

/// Upstream's `leaderElection`, with its flags.
#[derive(Debug, Default, clap::Args, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Election {
    /// Whether this one schedules only while it holds the Lease, so that several replicas can run
    /// [default: true].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    leader_elect: Option<bool>,
    /// How long the others wait for a leader that no longer renews [default: 15s].
    #[arg(long = "leader-elect-lease-duration", value_name = "DURATION")]
    lease_duration: Option<GoDuration>,
    /// How long a leader tries to renew before it ends [default: 10s].
    #[arg(long = "leader-elect-renew-deadline", value_name = "DURATION")]
    renew_deadline: Option<GoDuration>,
    /// How long it is from one try to the next [default: 2s].
    #[arg(long = "leader-elect-retry-period", value_name = "DURATION")]
    retry_period: Option<GoDuration>,
    /// What the lock is: leases, and nothing else.
    #[arg(long = "leader-elect-resource-lock", value_name = "KIND")]
    resource_lock: Option<String>,
    /// The Lease's name: of all replicas with the same scheduler names, and of no others
    /// [default: podway-scheduler].
    #[arg(long = "leader-elect-resource-name", value_name = "NAME")]
    resource_name: Option<String>,
    /// The Lease's namespace [default: podway-system].
    #[arg(long = "leader-elect-resource-namespace", value_name = "NAME")]
    resource_namespace: Option<String>,
}

impl Election {
    fn merged(self, file: Election) -> Self {
        Election {
            leader_elect: self.leader_elect.or(file.leader_elect),
            lease_duration: self.lease_duration.or(file.lease_duration),
            renew_deadline: self.renew_deadline.or(file.renew_deadline),
            retry_period: self.retry_period.or(file.retry_period),
            resource_lock: self.resource_lock.or(file.resource_lock),
            resource_name: self.resource_name.or(file.resource_name),
            resource_namespace: self.resource_namespace.or(file.resource_namespace),
        }
    }

    fn config(&self) -> anyhow::Result<Option<LeaderElection>> {
        let mut config = LeaderElection::default();
        let set = |to: &mut std::time::Duration, from: Option<GoDuration>| {
            if let Some(GoDuration(duration)) = from {
                *to = duration;
            }
        };
        set(&mut config.lease_duration, self.lease_duration);
        set(&mut config.renew_deadline, self.renew_deadline);
        set(&mut config.retry_period, self.retry_period);
        for (name, from, to) in [
            ("resourceName", &self.resource_name, &mut config.resource_name),
            ("resourceNamespace", &self.resource_namespace, &mut config.resource_namespace),
        ] {
            let Some(value) = from else { continue };
            let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
            if value.is_empty() || value.len() > 253 || !value.chars().all(label) {
                let fix = "give the name of an object: lower case letters, digits, - and .";
                return Err(wrong(&format!("leaderElection.{name} {value:?}"), fix).into());
            }
            to.clone_from(value);
        }
        if let Some(lock) = self.resource_lock.as_deref().filter(|lock| *lock != "leases") {
            let field = format!("leaderElection.resourceLock {lock:?}");
            return Err(wrong(&field, "give leases: not supported is any other lock").into());
        }
        if let Err(error) = config.check() {
            return Err(wrong("leaderElection", &error.to_string()).into());
        }
        Ok(self.leader_elect.unwrap_or(true).then_some(config))
    }
}

fn wrong(field: &str, fix: &str) -> Hinted {
    Hinted::new(format!("{field} is not valid"), format!("{fix}; see config/scheduler.yaml"))
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
            debug_socket: self.debug_socket.or(file.debug_socket),
            record: self.record.or(file.record),
            shadow: self.shadow.or(file.shadow),
            leader_election: self.leader_election.merged(file.leader_election),
            profiles: file.profiles,
            of_kube: file.of_kube,
            extenders: file.extenders,
        }
    }

    /// The scheduler's configuration, each value checked.
    pub(crate) fn config(&self) -> anyhow::Result<Config> {
        let mut config = Config::default();
        let of_file = match (&self.of_kube, &self.profiles) {
            (Some(all), _) => Some(all.clone()),
            (None, Some(all)) => Some(kube::named(all, None, None)?),
            (None, None) => None,
        };
        match (&self.scheduler_names, of_file) {
            (Some(names), _) if names.is_empty() || names.iter().any(|n| n.trim() != n || n.is_empty()) => {
                let fix = "name at least one scheduler, none of them empty or with space around it";
                return Err(wrong(&format!("schedulerNames {names:?}"), fix).into());
            }
            (Some(_), Some(_)) => {
                let fix = "profiles have names of their own: give one of the two";
                return Err(wrong("schedulerNames beside profiles", fix).into());
            }
            (Some(names), None) => {
                config.profiles = names.iter().map(|n| (n.clone(), ProfileSpec::default())).collect();
            }
            (None, Some(all)) => config.profiles = all,
            (None, None) => {}
        }
        if config.profiles.is_empty() {
            return Err(wrong("profiles []", "give at least one").into());
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
        config.debug_socket.clone_from(&self.debug_socket);
        config.record.clone_from(&self.record);
        config.shadow = self.shadow.unwrap_or(false);
        config.leader_election = self.leader_election.config()?;
        config.extenders = extenders::checked(&self.extenders)?;
        if config.shadow && !config.extenders.is_empty() {
            let fix = "not supported: extenders beside shadow: a shadow would ask them about pods that it never binds";
            return Err(wrong("extenders", fix).into());
        }
        Ok(config)
    }
}

/// What a file says that it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
}

fn read(text: &str) -> anyhow::Result<Settings> {
    let head: Head = serde_yaml::from_str(text)?;
    match (head.api_version.as_str(), head.kind.as_str()) {
        (API_VERSION, KIND) => Ok(serde_yaml::from_str(text)?),
        (kube::API_VERSION, kube::KIND) => {
            let file: KubeSchedulerConfiguration = serde_yaml::from_str(text)?;
            file.check()?;
            Ok(Settings {
                kubeconfig: file.kubeconfig(),
                of_kube: Some(file.profiles()?),
                pod_initial_backoff_seconds: file.pod_initial_backoff_seconds,
                pod_max_backoff_seconds: file.pod_max_backoff_seconds,
                leader_election: file.leader_election,
                extenders: file.extenders,
                ..Settings::default()
            })
        }
        (version, kind) => anyhow::bail!(
            "apiVersion {version:?} and kind {kind:?} are not known here: write {API_VERSION} {KIND}, or {} {}",
            kube::API_VERSION,
            kube::KIND
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: podway.dev/v1alpha1\nkind: SchedulerConfiguration\n";
    const FILE: &str = include_str!("../../../config/scheduler.yaml");

    fn names(config: &Config) -> Vec<&str> {
        config.profiles.iter().map(|(name, _)| name.as_str()).collect()
    }

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
                    podMaxBackoffSeconds: 20\nbindLanes: 4\nkubeconfig: /k\n\
                    leaderElection: {leaseDuration: 1m0s, resourceName: other}\n";
        let read = || read(&format!("{HEAD}{file}")).unwrap();
        let config = read().config().unwrap();
        assert_eq!(names(&config), ["a", "b"]);
        assert_eq!((config.serve, config.bind_lanes), (None, 4));
        assert_eq!((config.backoff.initial, config.backoff.max), (2_000_000, 20_000_000));
        let flags = Settings {
            scheduler_names: Some(vec!["c".to_owned()]),
            metrics_bind_address: Some("127.0.0.1:1".to_owned()),
            pod_initial_backoff_seconds: Some(3),
            kubeconfig: Some("/l".into()),
            leader_election: Election { retry_period: "3s".parse().ok(), ..Election::default() },
            ..Settings::default()
        };
        let merged = flags.merged(read());
        assert_eq!(merged.kubeconfig.as_deref(), Some(Path::new("/l")));
        let config = merged.config().unwrap();
        assert_eq!(names(&config), ["c"]);
        assert_eq!(config.serve, Some(SocketAddr::from(([127, 0, 0, 1], 1))));
        assert_eq!((config.backoff.initial, config.backoff.max), (3_000_000, 20_000_000));
        assert_eq!(config.bind_lanes, 4);
        let election = config.leader_election.unwrap();
        assert_eq!((election.lease_duration.as_secs(), election.retry_period.as_secs()), (60, 3));
        assert_eq!(election.resource_name, "other");
        assert_eq!(of("leaderElection: {leaderElect: false}").unwrap().leader_election, None);
    }

    #[test]
    fn profiles_come_from_either_file() {
        let ours = of("profiles: [{schedulerName: a, plugins: {score: {disabled: [{name: '*'}]}}}]").unwrap();
        assert_eq!(names(&ours), ["a"]);
        let kube = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n\
                    podMaxBackoffSeconds: 5\nleaderElection: {leaderElect: false}\n";
        let config = read(kube).unwrap().config().unwrap();
        assert_eq!((names(&config), config.backoff.max), (vec!["default-scheduler"], 5_000_000));
        assert_eq!(config.leader_election, None);
        for fields in
            ["profiles: []", "profiles: [{}]", "schedulerNames: [a]\nprofiles: [{schedulerName: a}]"]
        {
            assert!(of(fields).is_err(), "{fields}");
        }
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
            .map(|line| {
                ["# kube", "# debug", "# record: "]
                    .iter()
                    .find(|c| line.starts_with(**c))
                    .map_or(line, |_| &line[2..])
                    .to_owned()
            })
            // The fields of leaderElection are flags that say so.
            .map(|line| match line.strip_prefix("  ") {
                Some(field) if !field.starts_with("leaderElect:") => format!("leaderElect{field}"),
                Some(field) => field.to_owned(),
                None => line,
            })
            .filter_map(|line| Some(line.split_once(':')?.0.to_lowercase()))
            .filter(|key| key != "leaderelection")
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
            ("leaderElection: {renewDeadline: 15s}", "leaderElection", "leaseDuration must be"),
            ("leaderElection: {renewDeadline: 15}", "leaderElection", "is not a duration"),
            ("leaderElection: {resourceLock: endpoints}", "resourceLock", "not supported"),
            ("leaderElection: {resourceName: A/b}", "resourceName", "lower case"),
        ] {
            let text = told(&of(fields).unwrap_err());
            assert!(text.contains(field) && text.contains(fix), "{fields}: {text}");
        }
        let other =
            read("apiVersion: kubescheduler.config.k8s.io/v1beta3\nkind: KubeSchedulerConfiguration\n");
        assert!(told(&other.unwrap_err()).contains(API_VERSION));
        assert!(told(&read("schedulerNames: [a]\n").unwrap_err()).contains("apiVersion"));
    }
}
