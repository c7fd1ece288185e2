//! OCI whiteouts in a name, before anything touches a disk.

/// What a file name means in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name<'a> {
    /// An ordinary entry.
    Plain,
    /// `.wh.<name>`: the name is gone from the layers below.
    Whiteout(&'a [u8]),
    /// `.wh..wh..opq`: the directory hides all that is below.
    Opaque,
    /// AUFS' own bookkeeping (`.wh..wh.plnk` and the like): read past.
    Bookkeeping,
    /// A whiteout of nothing, of `.` or of `..`.
    Invalid,
}

/// Reads a file name.
pub(super) fn classify(name: &[u8]) -> Name<'_> {
    let Some(target) = name.strip_prefix(b".wh.") else { return Name::Plain };
    match target {
        b".wh..opq" => Name::Opaque,
        b"" | b"." | b".." => Name::Invalid,
        other if other.starts_with(b".wh.") => Name::Bookkeeping,
        other => Name::Whiteout(other),
    }
}

#[cfg(test)]
mod tests {
    use super::{Name, classify};
    use rstest::rstest;

    #[rstest]
    #[case("a", Name::Plain)]
    #[case(".wh", Name::Plain)]
    #[case(".wh.a", Name::Whiteout(b"a"))]
    #[case(".wh..a", Name::Whiteout(b".a"))]
    #[case(".wh..wh..opq", Name::Opaque)]
    #[case(".wh..wh.plnk", Name::Bookkeeping)]
    #[case(".wh.", Name::Invalid)]
    #[case(".wh..", Name::Invalid)]
    #[case(".wh...", Name::Invalid)]
    fn a_name_is_classified(#[case] name: &str, #[case] want: Name<'_>) {
        assert_eq!(classify(name.as_bytes()), want);
    }
}
