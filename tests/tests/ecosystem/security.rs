//! `docs/security.md` tells the truth: every test that it names exists, and unsafe code is where it says and nowhere else.

use super::{file, text};
use anyhow::{Context as _, ensure};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Every Rust file of `dir`, relative to the repository.
fn sources(dir: &str) -> anyhow::Result<Vec<String>> {
    fn walk(dir: &Path, all: &mut Vec<PathBuf>) -> std::io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                walk(&path, all)?;
            } else if path.extension().is_some_and(|e| e == "rs") {
                all.push(path);
            }
        }
        Ok(())
    }
    let mut all = Vec::new();
    walk(&file(dir), &mut all)?;
    let root = file("");
    all.iter().map(|p| Ok(p.strip_prefix(&root)?.display().to_string())).collect()
}

/// The words in backquotes of a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

#[test]
fn every_test_that_the_page_names_exists() -> anyhow::Result<()> {
    let page = text("docs/security.md")?;
    let table = page.split("## Threats").nth(1).and_then(|p| p.split("\n## ").next()).context("the table")?;
    let mut named = 0;
    for line in table.lines().filter(|l| l.starts_with('|')).skip(2) {
        let last = line.trim_end_matches(['|', ' ']).rsplit('|').next().unwrap_or_default();
        let (mut source, mut tests) = (None, 0);
        for word in quoted(last) {
            match word.ends_with(".rs") {
                true => source = Some((word, text(word)?)),
                false => {
                    let (path, source) = source.as_ref().with_context(|| format!("no file before {word}"))?;
                    ensure!(source.contains(&format!("fn {word}(")), "{path} has no {word}");
                    tests += 1;
                }
            }
        }
        ensure!(tests > 0, "nothing guards this line: {line}");
        named += tests;
    }
    ensure!(named > 30, "{named} tests");
    // The benchmark's rows name a test behind its file where there is one.
    let rows =
        page.split("## The node rows").nth(1).and_then(|p| p.split("\n## ").next()).context("the rows")?;
    let mut guarded = 0;
    for line in rows.lines().filter(|l| l.starts_with('|')) {
        let words: Vec<&str> = quoted(line).collect();
        for pair in words.windows(2).filter(|pair| pair[0].ends_with(".rs")) {
            ensure!(text(pair[0])?.contains(&format!("fn {}(", pair[1])), "{} has no {}", pair[0], pair[1]);
            guarded += 1;
        }
    }
    ensure!(guarded >= 4, "{guarded} rows");
    Ok(())
}

#[test]
fn unsafe_code_is_where_the_page_says_and_nowhere_else() -> anyhow::Result<()> {
    let page = text("docs/security.md")?;
    let section =
        page.split("## Unsafe code").nth(1).and_then(|p| p.split("\n## ").next()).context("a section")?;
    let told: BTreeSet<String> =
        section.lines().filter_map(|l| Some(quoted(l.strip_prefix("| ")?).next()?.to_owned())).collect();
    let mut found = BTreeSet::new();
    for path in sources("src")?.into_iter().chain(sources("tests")?) {
        let source = text(&path)?;
        let code = source.lines().map(|l| l.split("//").next().unwrap_or_default());
        // Put together, so that this file is none of them.
        let keyword = concat!("uns", "afe");
        let words = ["{", "fn", "impl", "extern", "trait"].map(|w| format!("{keyword} {w}"));
        if code.into_iter().any(|l| words.iter().any(|w| l.contains(w))) {
            found.insert(path);
        }
    }
    ensure!(found == told, "unsafe code is in {found:?}, and the page says {told:?}");
    // And the compiler refuses it anywhere else.
    ensure!(text("Cargo.toml")?.contains("unsafe_code = \"deny\""), "unsafe_code is not denied");
    for path in sources("src")?.into_iter().filter(|p| !found.contains(p)) {
        ensure!(!text(&path)?.contains("(unsafe_code"), "{path} lets unsafe code in");
    }
    Ok(())
}
