//! Names under creation: one task per name, not per call.
//!
//! A sandbox or a container is made by a task of its own, so that a client that hangs up does not
//! leave half of it. Whoever asks for the same name meanwhile joins that task and gets its result;
//! whoever asks later finds the entry. So a retried call has one effect and one id.

use crate::error::Failure;
use crate::ids::Id;
use futures::future::{BoxFuture, FutureExt as _, Shared};
use podway_flow::Record;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What must be unique.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Name {
    /// A sandbox: name, namespace, uid and attempt.
    Sandbox(String, String, String, u32),
    /// A container: its sandbox, name and attempt.
    Container(Id, String, u32),
}

/// A thing that was made, and what was recorded on the way.
#[derive(Clone, Debug)]
pub struct Made {
    /// Its id.
    pub id: Id,
    /// The records of its making.
    pub records: Vec<Record>,
}

type Outcome = Result<Made, Failure>;
type Running = HashMap<Name, Shared<BoxFuture<'static, Outcome>>>;

/// The names whose things are being made.
#[derive(Clone, Debug, Default)]
pub struct Names(Arc<Mutex<Running>>);

/// Frees the name when the task ends, also by a panic.
struct Release(Names, Name);

impl Drop for Release {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

impl Names {
    fn lock(&self) -> MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the task of `name`, or takes what `existing` finds, or runs `work` as that task.
    ///
    /// # Errors
    /// The task's failure, the same for all that joined.
    pub async fn join<F>(
        &self,
        name: Name,
        existing: impl FnOnce() -> Option<Outcome>,
        work: impl FnOnce() -> F,
    ) -> Outcome
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let task = {
            let mut running = self.lock();
            if let Some(task) = running.get(&name) {
                task.clone()
            } else if let Some(outcome) = existing() {
                return outcome;
            } else {
                // The task can free the name only after it was entered: it needs this lock for it.
                let (release, work) = (Release(self.clone(), name.clone()), work());
                let task = tokio::spawn(async move {
                    let outcome = work.await;
                    drop(release);
                    outcome
                });
                let task = task
                    .map(|ended| ended.unwrap_or_else(|e| Err(Failure::internal(&e.to_string()))))
                    .boxed()
                    .shared();
                running.insert(name, task.clone());
                task
            }
        };
        task.await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn callers_of_one_name_share_one_task_even_if_the_first_leaves() {
        let (names, ran) = (Names::default(), Arc::new(AtomicU32::new(0)));
        let name = Name::Sandbox("a".into(), "b".into(), "c".into(), 0);
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let id = Id::random().unwrap();
        let work = |ran: Arc<AtomicU32>, id: Id, wait: Option<tokio::sync::oneshot::Receiver<()>>| {
            move || async move {
                ran.fetch_add(1, Ordering::Relaxed);
                if let Some(wait) = wait {
                    wait.await.unwrap();
                }
                Ok(Made { id, records: vec![] })
            }
        };
        let mut first =
            Box::pin(names.join(name.clone(), || None, work(ran.clone(), id.clone(), Some(gone))));
        assert!(futures::poll!(&mut first).is_pending());
        drop(first);
        let mut second = Box::pin(names.join(name.clone(), || None, work(ran.clone(), id.clone(), None)));
        assert!(futures::poll!(&mut second).is_pending());
        go.send(()).unwrap();
        assert_eq!(second.await.unwrap().id, id);
        assert_eq!(ran.load(Ordering::Relaxed), 1);
        let other = Id::random().unwrap();
        let found = names.join(
            name.clone(),
            || Some(Ok(Made { id: other.clone(), records: vec![] })),
            futures::future::pending,
        );
        assert_eq!(found.await.unwrap().id, other);
        let panics = names.join(name.clone(), || None, || async { panic!("boom") });
        assert!(panics.await.is_err());
        assert!(names.lock().is_empty(), "a panic frees the name");
    }
}
