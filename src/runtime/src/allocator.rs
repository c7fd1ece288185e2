//! Memory that is free and lies between what is not: glibc keeps such pages, and what is asked for later comes on top.
//! The runtime gives it back after a pull, the agent each minute.

/// Gives free pages back to the kernel: a walk over the free chunks of a few MiB. Another C library does so by itself.
#[cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "malloc_trim has no safe wrapper; it touches no memory of ours")
)]
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: may be called by any thread at any time (malloc_trim(3)), and moves nothing.
        let any = unsafe { nix::libc::malloc_trim(0) };
        tracing::trace!(any, "free memory is given back");
    }
}
