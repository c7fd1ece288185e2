//! The one fact of an ELF file that matters here.

/// Whether an ELF file of 64 bits names no interpreter (`PT_INTERP`, program header type 3).
pub(crate) fn is_static(elf: &[u8]) -> bool {
    let number = |at: usize, size: usize| -> Option<usize> {
        let bytes = elf.get(at..at.checked_add(size)?)?;
        bytes.iter().rev().try_fold(0usize, |n, b| n.checked_mul(256)?.checked_add(usize::from(*b)))
    };
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
        return false;
    }
    let (Some(start), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else {
        return false;
    };
    (0..count).all(|i| {
        let at = size.checked_mul(i).and_then(|n| n.checked_add(start));
        at.and_then(|at| number(at, 4)).is_some_and(|kind| kind != 3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_program_with_an_interpreter_is_not_static() {
        assert!(!is_static(&fs::read("/proc/self/exe").unwrap()), "this test is linked to libc");
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(b"\x7fELF\x02\x01"));
    }
}
