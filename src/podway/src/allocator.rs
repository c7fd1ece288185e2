//! Memory of the daemons: glibc gives threads arenas of their own, eight for each processor, and what one thread has
//! freed in its arena no other uses. These daemons wait more than they allocate: two arenas are a quarter less memory
//! (docs/performance.md) and no time.

use std::time::Duration;

/// How often free memory is given back: a start takes several times what the pod keeps, and a burst of them leaves it
/// between what stays.
const GIVE_BACK: Duration = Duration::from_secs(60);

/// How many arenas there are at most.
#[cfg(target_env = "gnu")]
const ARENAS: nix::libc::c_int = 2;

/// To be called before there is a second thread. Another C library has no arenas.
#[cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "mallopt has no safe wrapper; it touches no memory of ours")
)]
pub(crate) fn frugal() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: sets a number of glibc's, while this is the only thread.
        let set = unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, ARENAS) };
        if set == 0 {
            tracing::debug!("glibc keeps its number of arenas");
        }
    }
}

/// Gives free memory back to the kernel, each minute.
pub(crate) async fn give_back() {
    let mut minutes = tokio::time::interval(GIVE_BACK);
    minutes.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        minutes.tick().await;
        if let Err(error) = tokio::task::spawn_blocking(podway_runtime::allocator::give_back).await {
            tracing::debug!(%error, "free memory is not given back");
        }
    }
}
