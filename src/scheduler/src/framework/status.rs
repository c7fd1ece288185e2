//! What a plugin says against a pod: on one node, or altogether.

use super::Point;
use serde::{Serialize, Serializer};
use std::borrow::Cow;
use std::ops::{Deref, Index};
use std::sync::Arc;

/// Why a plugin refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Preempting pods may help.
    Unschedulable,
    /// Preempting pods cannot help.
    UnschedulableAndUnresolvable,
    /// The plugin failed.
    Error,
}

impl Code {
    /// Upstream's word, a metric label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Code::Unschedulable => "Unschedulable",
            Code::UnschedulableAndUnresolvable => "UnschedulableAndUnresolvable",
            Code::Error => "Error",
        }
    }
}

/// A plugin failed where it should have answered: upstream's `SchedulerError`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The plugin.
    pub plugin: &'static str,
    /// Where.
    pub point: Point,
    /// What it said.
    pub detail: String,
}

impl Failure {
    /// The failure that a status with [`Code::Error`] tells of.
    #[must_use]
    pub fn of(point: Point, status: &Status) -> Self {
        Failure { plugin: status.plugin, point, detail: status.reasons.join(", ") }
    }
}

impl std::fmt::Display for Failure {
    /// Upstream's wording (`framework/runtime/framework.go`); Filter is the odd one there.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.point {
            // Upstream tells an extender's error as it is.
            _ if self.plugin == crate::extender::NAME => f.write_str(&self.detail),
            Point::Filter => write!(f, "running {:?} filter plugin: {}", self.plugin, self.detail),
            point => write!(f, "running {} plugin {:?}: {}", point.name(), self.plugin, self.detail),
        }
    }
}

impl std::error::Error for Failure {}

/// A refusal: who, how, and upstream's reason strings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The plugin that refuses.
    pub plugin: &'static str,
    /// How final it is.
    pub code: Code,
    /// One or more reasons (Fit names every resource that is short).
    pub reasons: Reasons,
}

impl Status {
    /// A refusal that preemption may lift.
    #[must_use]
    pub fn unschedulable(plugin: &'static str, reason: impl Into<Reason>) -> Self {
        Status { plugin, code: Code::Unschedulable, reasons: Reasons::One(reason.into()) }
    }

    /// A failure of the plugin itself.
    #[must_use]
    pub fn error(plugin: &'static str, detail: impl Into<Reason>) -> Self {
        Status { plugin, code: Code::Error, reasons: Reasons::One(detail.into()) }
    }

    /// A refusal that preemption cannot lift.
    #[must_use]
    pub fn unresolvable(plugin: &'static str, reason: impl Into<Reason>) -> Self {
        Status { plugin, code: Code::UnschedulableAndUnresolvable, reasons: Reasons::One(reason.into()) }
    }
}

/// A reason; most are upstream's constant words.
pub type Reason = Cow<'static, str>;

/// Reasons. Thousands of nodes fall in one cycle, nearly all for one constant reason: that allocates nothing.
#[derive(Clone, Debug)]
pub enum Reasons {
    /// Just one.
    One(Reason),
    /// As many as there are.
    Many(Vec<Reason>),
}

impl Deref for Reasons {
    type Target = [Reason];

    fn deref(&self) -> &[Reason] {
        match self {
            Reasons::One(reason) => std::slice::from_ref(reason),
            Reasons::Many(reasons) => reasons,
        }
    }
}

impl Serialize for Reasons {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self[..].serialize(serializer)
    }
}

impl PartialEq for Reasons {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

impl Eq for Reasons {}

impl<const N: usize> PartialEq<[&str; N]> for Reasons {
    fn eq(&self, other: &[&str; N]) -> bool {
        self[..] == other[..]
    }
}

impl<T: Into<Reason>> FromIterator<T> for Reasons {
    fn from_iter<I: IntoIterator<Item = T>>(all: I) -> Self {
        let mut all: Vec<Reason> = all.into_iter().map(Into::into).collect();
        match (all.pop(), all.is_empty()) {
            (Some(one), true) => Reasons::One(one),
            (last, _) => {
                all.extend(last);
                Reasons::Many(all)
            }
        }
    }
}

/// Why nodes fell, by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusals(Vec<(Arc<str>, Status)>);

impl Refusals {
    /// One more; they come in order of name.
    pub(crate) fn push(&mut self, node: Arc<str>, status: Status) {
        debug_assert!(self.0.last().is_none_or(|(last, _)| *last < node));
        self.0.push((node, status));
    }

    /// Why a node fell; `None` when it did not.
    #[must_use]
    pub fn get(&self, node: &str) -> Option<&Status> {
        let at = self.0.binary_search_by(|(name, _)| (**name).cmp(node)).ok()?;
        self.0.get(at).map(|(_, status)| status)
    }

    /// All, in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Status)> {
        self.0.iter().map(|(name, status)| (&**name, status))
    }

    /// The first `count` and no others.
    pub(crate) fn keep(&mut self, count: usize) {
        self.0.truncate(count);
        self.0.shrink_to_fit();
    }

    /// The first `count`, shared names and all.
    pub(crate) fn first(&self, count: usize) -> impl Iterator<Item = (Arc<str>, &Status)> {
        self.0.iter().take(count).map(|(name, status)| (Arc::clone(name), status))
    }

    /// The statuses.
    pub fn values(&self) -> impl Iterator<Item = &Status> {
        self.0.iter().map(|(_, status)| status)
    }

    /// How many nodes fell.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when none fell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<N: Into<Arc<str>>> FromIterator<(N, Status)> for Refusals {
    fn from_iter<I: IntoIterator<Item = (N, Status)>>(all: I) -> Self {
        let mut all: Vec<(Arc<str>, Status)> = all.into_iter().map(|(n, s)| (n.into(), s)).collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all.dedup_by(|(a, _), (b, _)| a == b);
        Refusals(all)
    }
}

impl Index<&str> for Refusals {
    type Output = Status;

    fn index(&self, node: &str) -> &Status {
        self.get(node).expect("this node fell")
    }
}
