//! The ends of systemd's jobs, told to who waits for them.
//!
//! One task listens for all: a connection hands a signal to each of its listeners before it reads on, and one that
//! waits for the answer to its own call does not listen meanwhile. With a listener for each job a hundred jobs at once
//! held up the connection for good.
//!
//! A job's name is known with the answer to the call that began it, and its end may be told before that. So ends that
//! nobody waits for are kept as long as any call is under way.

use futures::{Stream, StreamExt as _};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;
use zbus::{Message, OwnedObjectPath};

/// Who waits for which job.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How many calls that begin a job have no answer yet.
    calls: usize,
    waiting: HashMap<OwnedObjectPath, oneshot::Sender<String>>,
    /// Ends that came while there were calls, of jobs that nobody waited for.
    early: HashMap<OwnedObjectPath, String>,
}

/// A call that begins a job.
pub(crate) struct Call {
    jobs: Arc<Jobs>,
}

impl Jobs {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be had before the call is made.
    pub(crate) fn call(self: &Arc<Self>) -> Call {
        self.lock().calls += 1;
        Call { jobs: Arc::clone(self) }
    }

    /// Hands out the ends that `signals` tell of, until there are no more; who waits then learns that none comes.
    pub(crate) async fn listen(self: Arc<Self>, mut signals: impl Stream<Item = Message> + Unpin) {
        while let Some(message) = signals.next().await {
            match message.body().deserialize::<(u32, OwnedObjectPath, String, String)>() {
                Ok((_, job, _, result)) => self.ended(job, result),
                Err(error) => tracing::warn!(%error, "systemd tells of a job in words of its own"),
            }
        }
        self.lock().waiting.clear();
    }

    fn ended(&self, job: OwnedObjectPath, result: String) {
        let mut state = self.lock();
        if let Some(waiting) = state.waiting.remove(&job) {
            // Who has stopped waiting does not want to know.
            drop(waiting.send(result));
        } else if state.calls > 0 {
            state.early.insert(job, result);
        }
    }
}

impl Call {
    /// The answer has come: `job` was begun. Gives how it ends.
    pub(crate) fn began(self, job: OwnedObjectPath) -> oneshot::Receiver<String> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.jobs.lock();
        state.waiting.retain(|_, waiting| !waiting.is_closed());
        match state.early.remove(&job) {
            Some(result) => drop(sender.send(result)),
            None => drop(state.waiting.insert(job, sender)),
        }
        drop(state);
        receiver
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.jobs.lock();
        state.calls -= 1;
        if state.calls == 0 {
            state.early.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    fn job(number: u32) -> OwnedObjectPath {
        OwnedObjectPath::try_from(format!("/org/freedesktop/systemd1/job/{number}")).unwrap()
    }

    #[test]
    fn an_end_is_told_whether_it_comes_before_the_answer_or_after() {
        let jobs = Arc::new(Jobs::default());
        let (first, second) = (jobs.call(), jobs.call());
        jobs.ended(job(2), "failed".to_owned());
        let first = first.began(job(1));
        jobs.ended(job(1), "done".to_owned());
        assert_eq!(first.now_or_never().unwrap().unwrap(), "done");
        assert_eq!(second.began(job(2)).now_or_never().unwrap().unwrap(), "failed");
        let state = jobs.lock();
        assert!(state.early.is_empty() && state.waiting.is_empty() && state.calls == 0, "{state:?}");
    }

    #[test]
    fn nothing_is_kept_of_jobs_of_others() {
        let jobs = Arc::new(Jobs::default());
        jobs.ended(job(1), "done".to_owned());
        assert!(jobs.lock().early.is_empty());
        let broken_off = jobs.call();
        jobs.ended(job(2), "done".to_owned());
        assert_eq!(jobs.lock().early.len(), 1);
        drop(broken_off);
        assert!(jobs.lock().early.is_empty());
        // One that was given up is forgotten with the next.
        drop(jobs.call().began(job(3)));
        let _waits = jobs.call().began(job(4));
        assert_eq!(jobs.lock().waiting.len(), 1);
    }

    #[tokio::test]
    async fn who_waits_learns_that_the_connection_has_ended() {
        let jobs = Arc::new(Jobs::default());
        let end = jobs.call().began(job(1));
        Arc::clone(&jobs).listen(futures::stream::empty()).await;
        assert!(end.await.is_err());
    }
}
