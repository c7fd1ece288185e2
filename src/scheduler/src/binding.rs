//! The binding cycle of one placed pod: Permit, PreBind, Bind, PostBind, in a task of its own.
//!
//! Reserve ran in the loop, together with the cache's assumption. Whoever starts this cycle calls
//! [`unreserve`] when it fails.

use crate::framework::{Code, Failure, Framework, Placement, Point, Status};
use crate::metrics::Metrics;
use podway_flow::Clock;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// What a binding cycle needs beside its pod.
#[derive(Clone)]
pub(crate) struct Binder {
    pub(crate) framework: Arc<Framework>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) lanes: Arc<Semaphore>,
    pub(crate) clock: Clock,
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
            Unbound::Refused(status) => status.reasons.join(", "),
            Unbound::Failed(failure) => failure.to_string(),
        }
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
    record: impl FnOnce() -> String,
) -> Result<(), Unbound> {
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
    // A pod that is held must not hold a lane.
    let _lane = binder.lanes.acquire().await;
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
    placement.annotation = Some(record());
    let start = binder.clock.now();
    let mut result = Err(Status::error("", "no Bind plugin of the profile takes the pod"));
    for plugin in &framework.bind {
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
                    Err(Status { plugin: "Spy", code, reasons: vec!["no".into()] })
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
        };
        let mut placement = Placement { pod: Arc::default(), node: "n".into(), annotation: None };
        let mut result = reserve(&binder, &placement);
        if result.is_ok() {
            result = cycle(&binder, &mut placement, || "[]".to_owned()).await;
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
