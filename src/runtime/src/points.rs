//! Fail points: every step after which a `kill -9` leaves something of its own behind.
//!
//! [`Point`] is the one list. Without the feature `failpoints` (which only `tests/points.rs` is
//! built with) [`at`] is nothing. With it, a process whose environment names a point kills itself
//! there, as the kernel would: no destructor, no flush.

macro_rules! points {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// A step of an operation that has just been taken.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point { $($(#[doc = $doc])* $name,)* }

        impl Point {
            /// All of them.
            pub const ALL: &[Point] = &[$(Point::$name,)*];

            /// Its name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Point::$name => stringify!($name),)* }
            }
        }
    };
}

points! {
    /// RunPodSandbox: the intent is journalled.
    SandboxIntent,
    /// The namespaces are made, nothing holds them.
    NamespacesMade,
    /// The first of them is pinned.
    NamespacePinned,
    /// The sandbox' directory is made, its shm is not mounted.
    SandboxDirectory,
    /// Its shm is mounted.
    ShmMounted,
    /// The network's intent is journalled: a DEL is owed.
    NetworkIntent,
    /// ADD has answered; nobody has noted what.
    NetworkAdded,
    /// The monitor runs.
    MonitorStarted,
    /// The sandbox is journalled as ready; nobody was told.
    SandboxReady,
    /// A journal entry is written and has not replaced the old one.
    JournalStaged,
    /// CreateContainer: the intent is journalled.
    ContainerIntent,
    /// The directories of the root filesystem are made, it is not mounted.
    RootfsDirectories,
    /// It is mounted.
    RootfsMounted,
    /// config.json is written.
    SpecWritten,
    /// The container is journalled as created; nobody was told.
    ContainerCreated,
    /// StartContainer: runc has created it.
    RuncCreated,
    /// runc has started it.
    RuncStarted,
    /// It is journalled as running; nobody was told.
    ContainerRunning,
    /// CheckpointContainer: the intent is journalled.
    CheckpointIntent,
    /// The container is frozen.
    CheckpointFrozen,
    /// criu has written its memory, the container is frozen still.
    CheckpointDumped,
    /// The container goes on; its memory and files lie in the runtime's directory.
    CheckpointTaken,
    /// The archive is written and has not its name yet.
    CheckpointStaged,
    /// It has; nobody was told.
    CheckpointNamed,
    /// StopContainer: its signal is sent.
    StopSignalled,
    /// The exit is journalled; nobody was told.
    ExitJournalled,
    /// RemoveContainer: runc has deleted it.
    RuncDeleted,
    /// Its root filesystem is unmounted.
    RootfsUnmounted,
    /// Its files are gone.
    ContainerFilesGone,
    /// Its journal entry is gone; nobody was told.
    ContainerForgotten,
    /// StopPodSandbox: it is journalled as stopped.
    SandboxStopped,
    /// Its containers have ended.
    ContainersEnded,
    /// DEL has answered.
    NetworkDeleted,
    /// The namespaces are unpinned.
    NamespacesUnpinned,
    /// RemovePodSandbox: its containers are removed.
    ContainersRemoved,
    /// The monitor has ended.
    MonitorEnded,
    /// Its shm is unmounted.
    ShmUnmounted,
    /// Its files are gone.
    SandboxFilesGone,
    /// Its journal entry is gone; nobody was told.
    SandboxForgotten,
    /// PullImage: a staging directory is made.
    LayerStaged,
    /// A layer is unpacked and was found right.
    LayerUnpacked,
    /// It is renamed to its place; no index names it.
    LayerCommitted,
    /// All layers are on disk, the index is not.
    LayersSynced,
    /// The index is written and has not replaced the old one.
    IndexStaged,
    /// The index names the image; nobody was told.
    ImageEntered,
    /// RemoveImage: the index names the image no more.
    ImageForgotten,
    /// A layer of it is renamed away and not deleted.
    LayerBuried,
}

/// A step was taken.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn at(_: Point) {}

/// The environment variable that names the point to die at.
#[cfg(feature = "failpoints")]
pub const VARIABLE: &str = "PODWAY_FAIL_POINT";

/// A step was taken: the process dies here if the environment says so.
#[cfg(feature = "failpoints")]
pub fn at(point: Point) {
    if std::env::var_os(VARIABLE).is_some_and(|name| name == point.name()) {
        use std::io::Write as _;
        // The test reads that it was this point and not another death.
        let told = writeln!(std::io::stderr(), "killed at {}", point.name());
        drop(told);
        if let Err(error) = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL) {
            tracing::error!(%error, "a fail point did not kill");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<&str> = Point::ALL.iter().map(|p| p.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
    }
}
