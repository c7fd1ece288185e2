//! The last sample of one thing, and whether somebody reads the next one.

use std::sync::Arc;
use tokio::sync::watch;

#[derive(Debug)]
struct Slot<T> {
    latest: Option<Arc<T>>,
    busy: bool,
}

/// The last sample of one thing.
#[derive(Debug)]
pub(super) struct Cell<T>(Arc<watch::Sender<Slot<T>>>);

impl<T> Default for Cell<T> {
    fn default() -> Self {
        Cell(Arc::new(watch::Sender::new(Slot { latest: None, busy: false })))
    }
}

/// The right, and the duty, to read the next sample. Dropped, it is given back without one.
pub(super) struct Claim<T>(Arc<watch::Sender<Slot<T>>>);

impl<T> Cell<T> {
    /// The right to read, if the last sample is not `fresh` and nobody else reads.
    pub(super) fn claim(&self, fresh: impl FnOnce(&T) -> bool) -> Option<Claim<T>> {
        let claimed = self.0.send_if_modified(|slot| {
            let wanted = !slot.busy && !slot.latest.as_deref().is_some_and(fresh);
            slot.busy |= wanted;
            wanted
        });
        claimed.then(|| Claim(Arc::clone(&self.0)))
    }

    /// The last sample.
    pub(super) fn latest(&self) -> Option<Arc<T>> {
        self.0.borrow().latest.clone()
    }

    /// Waits until nobody reads.
    pub(super) async fn settled(&self) {
        // The sender is this cell's own: it cannot be gone.
        drop(self.0.subscribe().wait_for(|slot| !slot.busy).await);
    }
}

impl<T> Claim<T> {
    /// Reads the next sample, with the last one at hand.
    pub(super) fn settle(self, read: impl FnOnce(Option<&T>) -> T) {
        let previous = self.0.borrow().latest.clone();
        let sample = Arc::new(read(previous.as_deref()));
        self.0.send_modify(|slot| slot.latest = Some(sample));
        // Dropping `self` frees the cell.
    }
}

impl<T> Drop for Claim<T> {
    fn drop(&mut self) {
        self.0.send_modify(|slot| slot.busy = false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_reads_and_the_others_wait_even_if_it_gives_up() {
        let cell: Cell<u32> = Cell::default();
        let claim = cell.claim(|_| false).unwrap();
        assert!(cell.claim(|_| false).is_none(), "one reads already");
        let mut waits = Box::pin(cell.settled());
        assert!(futures::poll!(&mut waits).is_pending());
        claim.settle(|before| before.map_or(7, |_| 8));
        waits.await;
        assert_eq!(cell.latest().as_deref(), Some(&7));
        assert!(cell.claim(|n| *n == 7).is_none(), "fresh");
        drop(cell.claim(|_| false).unwrap());
        cell.settled().await;
        assert_eq!(cell.latest().as_deref(), Some(&7), "who gives up takes nothing away");
    }
}
