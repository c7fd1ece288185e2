//! What is known against a version of runc: the holes through which a container got out or wrote on the host.

use super::{Finding, State, finding};

/// The oldest that has what is asked of it (`runc features`, `--pidfd-socket`, id-mapped mounts).
const NEEDED: (u32, u32, u32) = (1, 1, 0);

/// A hole, and the first version of each line of releases without it; newer lines never had it.
struct Hole {
    names: &'static str,
    fixed: &'static [(u32, u32, u32)],
}

/// From runc's own security advisories.
const HOLES: [Hole; 5] = [
    Hole { names: "CVE-2022-29162", fixed: &[(1, 1, 2)] },
    Hole { names: "CVE-2023-25809, CVE-2023-27561, CVE-2023-28642", fixed: &[(1, 1, 5)] },
    Hole { names: "CVE-2024-21626", fixed: &[(1, 1, 12)] },
    Hole { names: "CVE-2024-45310", fixed: &[(1, 1, 14)] },
    Hole {
        names: "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881",
        fixed: &[(1, 2, 8), (1, 3, 3), (1, 4, 0)],
    },
];

/// Judges by what `runc --version` prints.
pub(super) fn judged(printed: &str) -> Finding {
    let line = printed.lines().next().unwrap_or_default().trim();
    let shown = podway_flow::record::bounded(line, 80);
    let Some(version) = line.strip_prefix("runc version ").and_then(parse) else {
        let said = format!("{shown:?} is no version of runc that can be judged");
        return finding("runc", State::Warning, said);
    };
    if version < NEEDED {
        return finding("runc", State::Missing, format!("{shown} is too old: 1.1 is the least"));
    }
    let open: Vec<&str> = HOLES.iter().filter(|hole| has(hole, version)).map(|hole| hole.names).collect();
    if open.is_empty() {
        return finding("runc", State::Ok, shown);
    }
    finding("runc", State::Warning, format!("{shown} has {}: update it", open.join(", ")))
}

fn has(hole: &Hole, version: (u32, u32, u32)) -> bool {
    let of_line = hole.fixed.iter().find(|fixed| (fixed.0, fixed.1) == (version.0, version.1));
    match of_line {
        Some(fixed) => version < *fixed,
        // A line that got no fix has it; one after all that got it never had.
        None => hole.fixed.iter().all(|fixed| version < *fixed),
    }
}

/// `1.2.3`, with `-rc.1` and `+dev` behind it or not. A candidate counts as what it is a candidate for.
fn parse(text: &str) -> Option<(u32, u32, u32)> {
    let plain = text.split(['-', '+', '~']).next()?;
    let mut numbers = plain.split('.').map(|n| n.parse().ok());
    let version = (numbers.next()??, numbers.next()??, numbers.next().unwrap_or(Some(0))?);
    numbers.next().is_none().then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_known_by_its_holes() {
        let state = |version: &str| judged(&format!("runc version {version}\ncommit: x\n"));
        for fine in ["1.2.8", "1.3.3", "1.3.4-rc.1+dev", "1.4.0", "1.5.0", "2.0.0"] {
            assert_eq!(state(fine).state, State::Ok, "{fine}: {}", state(fine).said);
        }
        for (old, hole) in [
            ("1.1.11", "CVE-2024-21626"),
            ("1.1.12", "CVE-2024-45310"),
            ("1.1.14", "CVE-2025-31133"),
            ("1.2.7", "CVE-2025-52881"),
            ("1.3.2", "CVE-2025-52881"),
        ] {
            let found = state(old);
            assert_eq!(found.state, State::Warning, "{old}");
            assert!(found.said.contains(hole), "{old}: {}", found.said);
        }
        assert!(!state("1.1.14").said.contains("CVE-2024"));
        assert_eq!(state("1.0.3").state, State::Missing);
        for odd in ["", "crun version 1.2.3", "runc version x.y", "runc version 1.2.3.4"] {
            assert_eq!(judged(odd).state, State::Warning, "{odd}");
        }
    }
}
