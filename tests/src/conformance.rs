//! Kubernetes' own end-to-end suite against podway: which specs there are in a set, what came of each
//! (`report`), what services and DNS need besides (`services`), and the page that says so beside what a stock node
//! does (`page`).

pub mod page;
pub mod report;
pub mod services;

/// A set of specs that is run as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Set {
    /// What a node agent and its runtime must do.
    Node,
    /// The rest of Conformance, but for services and DNS, which want a proxy and a DNS server.
    Cluster,
    /// What both leave out: specs that take minutes, that want the cluster for themselves, that disturb it.
    Serial,
    /// What a scheduler must do, on two nodes.
    Scheduling,
    /// Services and DNS, on two nodes, by a stock kube-proxy and CoreDNS that run as pods there.
    Network,
}

/// What the sets that run side by side have not: specs that take minutes, disturb others, or are known to fail
/// now and then.
const ALWAYS: &str = "!Serial && !Slow && !Disruptive && !Flaky";

impl Set {
    /// Every set, in the page's order.
    pub const ALL: [Set; 5] = [Set::Node, Set::Cluster, Set::Serial, Set::Scheduling, Set::Network];

    /// Its name, on the command line and in the page.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Set::Node => "node",
            Set::Cluster => "cluster",
            Set::Serial => "serial",
            Set::Scheduling => "scheduling",
            Set::Network => "network",
        }
    }

    /// ginkgo's `--label-filter`.
    #[must_use]
    pub fn labels(self) -> String {
        match self {
            Set::Node => format!("NodeConformance && {ALWAYS}"),
            Set::Cluster => format!("Conformance && !NodeConformance && {ALWAYS}"),
            Set::Serial => "(NodeConformance || Conformance) && (Serial || Slow || Disruptive) && !Flaky \
                            && !sig-scheduling && !sig-network"
                .to_owned(),
            Set::Scheduling => "sig-scheduling && !Flaky && !(Feature: containsAny OffByDefault)".to_owned(),
            Set::Network => format!("sig-network && Feature: isEmpty && {ALWAYS}"),
        }
    }

    /// ginkgo's `--skip`, if there is one.
    #[must_use]
    pub fn skip(self) -> Option<&'static str> {
        match self {
            Set::Cluster => Some(r"\[sig-network\]"),
            Set::Node | Set::Serial | Set::Scheduling | Set::Network => None,
        }
    }

    /// Whether a stock node has been measured with it.
    #[must_use]
    pub fn stock_ran(self) -> bool {
        matches!(self, Set::Node | Set::Cluster)
    }

    /// How many nodes it wants.
    #[must_use]
    pub fn nodes(self) -> u8 {
        if matches!(self, Set::Scheduling | Set::Network) { 2 } else { 1 }
    }
}

/// What a stock kubelet 1.36.3 with containerd 2.4.2 and kube-scheduler does not pass on a machine like
/// CI's, and why: a part of the spec's name each. It passes every other spec of the sets that it was measured with.
const STOCK_FAILS: [(&str, &str); 5] = [
    (
        "PrivilegedPod [NodeConformance] should enable privileged commands",
        "the kernel has no `dummy` network device",
    ),
    (
        "Aggregator Should be able to support the 1.17 Sample API Server",
        "there is no image of the aggregated API server",
    ),
    ("should have at least two untainted nodes", "needs two nodes"),
    ("Guestbook application should create and stop a working application", "needs a service network"),
    (
        "ServiceAccountIssuerDiscovery should support OIDC discovery",
        "needs a service network and the cluster's DNS",
    ),
];

/// Why a stock node fails a spec; `None` where it passes.
#[must_use]
pub fn stock_fails(spec: &str) -> Option<&'static str> {
    STOCK_FAILS.iter().find(|(part, _)| spec.contains(part)).map(|(_, why)| *why)
}
