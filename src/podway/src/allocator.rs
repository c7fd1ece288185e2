//! Memory of the daemons: glibc gives threads arenas of their own, eight for each processor, and what one thread has
//! freed in its arena no other uses. These daemons wait more than they allocate: two arenas are a quarter less memory
//! (docs/performance.md) and no time.

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
