//! What the runtime reports of a pod, and how later news are laid over it.

use podway_flow::Micros;

/// A sandbox as the runtime reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// Whether it is ready.
    pub ready: bool,
    /// 0 for the first.
    pub attempt: u32,
    /// When it was made.
    pub created: Micros,
    /// Its addresses, the primary one first; empty with the host's network.
    pub ips: Vec<String>,
}

/// A container's state as the runtime reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, not started.
    Created,
    /// Running.
    Running,
    /// Ended.
    Exited {
        /// The exit code.
        code: i32,
        /// When.
        finished: Micros,
        /// The runtime's reason, e.g. `OOMKilled`; empty if it has none.
        reason: String,
        /// The runtime's message or the termination message.
        message: String,
    },
    /// The runtime has lost it.
    Unknown,
}

/// A container as the runtime reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its id.
    pub id: String,
    /// The sandbox it is in.
    pub sandbox: String,
    /// The container's name in the pod.
    pub name: String,
    /// How often the container had been restarted when this one was made.
    pub restarts: u32,
    /// The hash of the spec it was made from.
    pub hash: u32,
    /// When it was made.
    pub created: Micros,
    /// When it was started; 0 if it was not.
    pub started: Micros,
    /// Its state.
    pub state: State,
    /// The resolved image.
    pub image_id: String,
    /// How long its start had been put off after its forerunner's end; `None` for a first one.
    pub waited: Option<std::time::Duration>,
}

impl State {
    /// States only go on: what was seen later in a container's life is the newer knowledge.
    fn rank(&self) -> u8 {
        match self {
            State::Created => 0,
            State::Running => 1,
            State::Unknown => 2,
            State::Exited { .. } => 3,
        }
    }
}

impl Instance {
    pub(in crate::pod) fn live(&self) -> bool {
        matches!(self.state, State::Running | State::Created | State::Unknown)
    }
}

/// Everything that the runtime reports of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Sandboxes, in no order.
    pub sandboxes: Vec<Sandbox>,
    /// Containers, in no order.
    pub containers: Vec<Instance>,
}

impl Observed {
    /// The newest ready sandbox.
    #[must_use]
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.iter().filter(|s| s.ready).max_by_key(|s| (s.attempt, s.created))
    }

    /// The newest container of a name.
    #[must_use]
    pub fn newest(&self, name: &str) -> Option<&Instance> {
        self.history(name).into_iter().next()
    }

    /// Every container of a name, newest first.
    #[must_use]
    pub fn history(&self, name: &str) -> Vec<&Instance> {
        let mut all: Vec<&Instance> = self.containers.iter().filter(|c| c.name == name).collect();
        all.sort_by(|a, b| (b.restarts, b.created, &b.id).cmp(&(a.restarts, a.created, &a.id)));
        all
    }

    /// Takes in what was told of one sandbox. News may come late: one that is not ready stays so.
    pub fn learn_sandbox(&mut self, news: Sandbox) {
        match self.sandboxes.iter_mut().find(|s| s.id == news.id) {
            Some(known) => {
                known.ready &= news.ready;
                if known.ips.is_empty() {
                    known.ips = news.ips;
                }
            }
            None => self.sandboxes.push(news),
        }
    }

    /// Takes in what was told of one container. News may come late: it never goes back in its life.
    pub fn learn(&mut self, news: Instance) {
        match self.containers.iter_mut().find(|c| c.id == news.id) {
            Some(known) if news.state.rank() >= known.state.rank() => *known = news,
            Some(_) => {}
            None => self.containers.push(news),
        }
    }

    /// Whether a process of the pod runs or may run.
    #[must_use]
    pub fn anything_live(&self) -> bool {
        self.containers.iter().any(|c| matches!(c.state, State::Running | State::Unknown))
    }
}
