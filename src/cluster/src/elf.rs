//! The one fact of an ELF file that matters here: the loader that it names.

fn number(elf: &[u8], at: usize, size: usize) -> Option<usize> {
    let bytes = elf.get(at..at.checked_add(size)?)?;
    bytes.iter().rev().try_fold(0usize, |n, b| n.checked_mul(256)?.checked_add(usize::from(*b)))
}

/// Where the program headers of a little-endian ELF file of 64 bits are.
fn headers(elf: &[u8]) -> Option<impl Iterator<Item = usize>> {
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
        return None;
    }
    let (start, size, count) = (number(elf, 32, 8)?, number(elf, 54, 2)?, number(elf, 56, 2)?);
    let end = size.checked_mul(count)?.checked_add(start)?;
    (end <= elf.len()).then(|| (0..count).map(move |i| start + size * i))
}

/// `PT_INTERP` of elf.h.
const INTERPRETER: usize = 3;

/// Whether an ELF file of 64 bits names no interpreter.
pub(crate) fn is_static(elf: &[u8]) -> bool {
    headers(elf)
        .is_some_and(|mut all| all.all(|at| number(elf, at, 4).is_some_and(|kind| kind != INTERPRETER)))
}

/// The interpreter, an absolute path: the dynamic loader of a program that is linked to libraries.
pub(crate) fn interpreter(elf: &[u8]) -> Option<String> {
    let at = headers(elf)?.find(|at| number(elf, *at, 4) == Some(INTERPRETER))?;
    let (offset, size) = (number(elf, at.checked_add(8)?, 8)?, number(elf, at.checked_add(32)?, 8)?);
    let bytes = elf.get(offset..offset.checked_add(size)?)?;
    let path = std::str::from_utf8(bytes).ok()?.trim_end_matches('\0');
    path.starts_with('/').then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_program_with_an_interpreter_is_not_static() {
        let own = fs::read("/proc/self/exe").unwrap();
        assert!(!is_static(&own), "this test is linked to libc");
        let loader = interpreter(&own).unwrap();
        assert!(fs::metadata(&loader).is_ok(), "{loader}");
        assert_eq!(interpreter(b"\x7fELF\x02\x01"), None);
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(b"\x7fELF\x02\x01"));
    }
}
