//! The binding cycle of one placed pod: Permit, PreBind, Bind, PostBind, in a task of its own.
//!
//! Reserve ran in the loop, together with the cache's assumption. Whoever starts this cycle calls
//! [`unreserve`] when it fails.

use crate::framework::{Code, Failure, Framework, Placement, Point, Status};
use crate::leader::Fence;
use crate::metrics::Metrics;
use podway_flow::Clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// What a binding cycle needs beside its pod.
#[derive(Clone)]
pub(crate) struct Binder {
    pub(crate) framework: Arc<Framework>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) lanes: Arc<Semaphore>,
    pub(crate) clock: Clock,
    pub(crate) fence: Fence,
}

/// Why a placed pod is not bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unbound {
    /// A plugin refused it: it waits for what that plugin says may help.
    Refused(Status),
    /// Something failed: it waits for its backoff.
    Failed(Failure),
}

impl Unbound {
    pub(crate) fn of(point: Point, status: Status) -> Self {
        match status.code {
            Code::Error => Unbound::Failed(Failure::of(point, &status)),
            Code::Unschedulable | Code::UnschedulableAndUnresolvable => Unbound::Refused(status),
        }
    }

    /// The condition's message.
    pub(crate) fn message(&self) -> String {
        match self {
            // Upstream's FitError of the one node that was chosen.
            Unbound::Refused(status) => {
                let mut reasons: Vec<String> = status.reasons.iter().map(|r| format!("1 {r}")).collect();
                reasons.sort();
                format!("0/1 nodes are available: {}.", reasons.join(", "))
            }
            Unbound::Failed(failure) => failure.to_string(),
        }
    }
}

/// Lets a preemption call a placed pod back in memory, until its binding is being written.
#[derive(Default)]
pub(crate) struct Recall {
    token: CancellationToken,
    state: AtomicU8,
}

impl Recall {
    const OPEN: u8 = 0;
    const RECALLED: u8 = 1;
    const COMMITTED: u8 = 2;

    fn become_(&self, state: u8) -> bool {
        self.state.compare_exchange(Self::OPEN, state, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Calls it back; false when it is too late, and only deleting the pod helps.
    pub(crate) fn recall(&self) -> bool {
        let recalled = self.become_(Self::RECALLED);
        if recalled {
            self.token.cancel();
        }
        recalled
    }

    fn status() -> Unbound {
        Unbound::Refused(Status::unschedulable("DefaultPreemption", "preempted by DefaultPreemption"))
    }
}

/// Reserve: all or nothing.
pub(crate) fn reserve(binder: &Binder, placement: &Placement) -> Result<(), Unbound> {
    if binder.framework.reserve.is_empty() {
        return Ok(());
    }
    let start = binder.clock.now();
    let result = binder.framework.reserve.iter().try_for_each(|plugin| plugin.reserve(placement));
    observe(binder, placement, Point::Reserve, start, &result);
    result.map_err(|status| {
        unreserve(binder, placement);
        Unbound::of(Point::Reserve, status)
    })
}

/// Undoes every reservation, the last one first; also those that were not made.
pub(crate) fn unreserve(binder: &Binder, placement: &Placement) {
    for plugin in binder.framework.reserve.iter().rev() {
        plugin.unreserve(placement);
    }
}

/// Permit to PostBind. `record` makes the annotation just before the binding is written.
pub(crate) async fn cycle(
    binder: &Binder,
    placement: &mut Placement,
    recall: &Recall,
    record: impl FnOnce() -> String,
) -> Result<(), Unbound> {
    let framework = &binder.framework;
    tokio::select! {
        biased;
        () = recall.token.cancelled() => return Err(Recall::status()),
        result = prepare(binder, placement) => result?,
    }
    // A pod that is held must not hold a lane.
    let _lane = binder.lanes.acquire().await;
    if !recall.become_(Recall::COMMITTED) {
        return Err(Recall::status());
    }
    placement.annotation = Some(record());
    let start = binder.clock.now();
    let mut result = Err(Status::error("", "no Bind plugin of the profile takes the pod"));
    let mut plugins = framework.bind.iter();
    if !binder.fence.holds() {
        // Another replica may lead by now, and have given the room to another pod.
        result = Err(Status::error("", "the lease of the leader is lost"));
        plugins = [].iter();
    }
    for plugin in plugins {
        match plugin.bind(placement).await {
            Ok(true) => {
                result = Ok(());
                break;
            }
            Ok(false) => {}
            Err(status) => {
                result = Err(status);
                break;
            }
        }
    }
    observe(binder, placement, Point::Bind, start, &result);
    result.map_err(|status| Unbound::of(Point::Bind, status))?;
    for plugin in &framework.post_bind {
        plugin.post_bind(placement);
    }
    Ok(())
}

/// Permit and PreBind: what may wait.
async fn prepare(binder: &Binder, placement: &Placement) -> Result<(), Unbound> {
    let framework = &binder.framework;
    if !framework.permit.is_empty() {
        let start = binder.clock.now();
        let mut result = Ok(());
        for plugin in &framework.permit {
            result = plugin.permit(placement).await;
            if result.is_err() {
                break;
            }
        }
        observe(binder, placement, Point::Permit, start, &result);
        binder.metrics.permit_waited(word(&result), binder.clock.now().since(start));
        result.map_err(|status| Unbound::of(Point::Permit, status))?;
    }
    if !framework.pre_bind.is_empty() {
        let start = binder.clock.now();
        let mut result = Ok(());
        for plugin in &framework.pre_bind {
            result = plugin.pre_bind(placement).await;
            if result.is_err() {
                break;
            }
        }
        observe(binder, placement, Point::PreBind, start, &result);
        result.map_err(|status| Unbound::of(Point::PreBind, status))?;
    }
    Ok(())
}

fn word(result: &Result<(), Status>) -> &'static str {
    result.as_ref().map_or_else(|status| status.code.name(), |()| "Success")
}

fn observe(
    binder: &Binder,
    placement: &Placement,
    point: Point,
    start: podway_flow::Micros,
    result: &Result<(), Status>,
) {
    let micros = binder.clock.now().since(start);
    binder.metrics.point(point, word(result), &placement.pod.scheduler_name, micros);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::{Bind, ClusterEvent, Permit, Plugin, PostBind, PreBind, Reserve};
    use crate::model::PodInfo;
    use futures::FutureExt;
    use futures::future::BoxFuture;
    use std::sync::Mutex;

    /// Notes what is called, and refuses where told.
    #[derive(Default)]
    struct Spy {
        calls: Mutex<Vec<&'static str>>,
        refuses: Option<(Point, Code)>,
    }

    impl Spy {
        fn call(&self, point: Point) -> Result<(), Status> {
            self.calls.lock().unwrap().push(point.name());
            match self.refuses {
                Some((at, code)) if at == point => {
                    Err(Status { plugin: "Spy", code, reasons: ["no"].into_iter().collect() })
                }
                _ => Ok(()),
            }
        }
    }

    impl Plugin for Spy {
        fn name(&self) -> &'static str {
            "Spy"
        }
        fn may_help(&self, _: &PodInfo, _: &ClusterEvent) -> bool {
            false
        }
    }
    impl Reserve for Spy {
        fn reserve(&self, _: &Placement) -> Result<(), Status> {
            self.call(Point::Reserve)
        }
        fn unreserve(&self, _: &Placement) {
            self.calls.lock().unwrap().push("Unreserve");
        }
    }
    impl Permit for Spy {
        fn permit<'a>(&'a self, _: &'a Placement) -> BoxFuture<'a, Result<(), Status>> {
            async { self.call(Point::Permit) }.boxed()
        }
    }
    impl PreBind for Spy {
        fn pre_bind<'a>(&'a self, _: &'a Placement) -> BoxFuture<'a, Result<(), Status>> {
            async { self.call(Point::PreBind) }.boxed()
        }
    }
    impl Bind for Spy {
        fn bind<'a>(&'a self, placement: &'a Placement) -> BoxFuture<'a, Result<bool, Status>> {
            assert_eq!(placement.annotation.as_deref(), Some("[]"));
            async { self.call(Point::Bind).map(|()| true) }.boxed()
        }
    }
    impl PostBind for Spy {
        fn post_bind(&self, _: &Placement) {
            self.calls.lock().unwrap().push("PostBind");
        }
    }

    async fn run(refuses: Option<(Point, Code)>) -> (Result<(), Unbound>, Vec<&'static str>) {
        let spy = Arc::new(Spy { refuses, ..Spy::default() });
        let framework = Framework {
            reserve: vec![spy.clone()],
            permit: vec![spy.clone()],
            pre_bind: vec![spy.clone()],
            bind: vec![spy.clone()],
            post_bind: vec![spy.clone()],
            ..Framework::default()
        };
        let binder = Binder {
            framework: Arc::new(framework),
            metrics: Arc::default(),
            lanes: Arc::new(Semaphore::new(1)),
            clock: Clock::new(),
            fence: Fence::open(),
        };
        let mut placement =
            Placement { pod: Arc::default(), node: "n".into(), annotation: None, volumes: None };
        let mut result = reserve(&binder, &placement);
        if result.is_ok() {
            result = cycle(&binder, &mut placement, &Recall::default(), || "[]".to_owned()).await;
        }
        let calls = spy.calls.lock().unwrap().clone();
        (result, calls)
    }

    #[tokio::test]
    async fn the_points_run_in_upstreams_order_and_stop_at_a_refusal() {
        let (result, calls) = run(None).await;
        assert_eq!(result, Ok(()));
        assert_eq!(calls, ["Reserve", "Permit", "PreBind", "Bind", "PostBind"]);

        let (result, calls) = run(Some((Point::Reserve, Code::Error))).await;
        assert_eq!(result.unwrap_err().message(), "running Reserve plugin \"Spy\": no");
        assert_eq!(calls, ["Reserve", "Unreserve"]);

        let (result, calls) = run(Some((Point::Permit, Code::Unschedulable))).await;
        assert!(matches!(result, Err(Unbound::Refused(_))));
        assert_eq!(calls, ["Reserve", "Permit"]);

        let (result, calls) = run(Some((Point::Bind, Code::Error))).await;
        assert_eq!(result.unwrap_err().message(), "running Bind plugin \"Spy\": no");
        assert_eq!(calls, ["Reserve", "Permit", "PreBind", "Bind"]);
    }
}
