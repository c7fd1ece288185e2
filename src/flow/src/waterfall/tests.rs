//! Golden files: the text is compared to `tests/golden/*`; `PODWAY_BLESS=1` writes them anew.

use super::*;
use crate::samples;
use std::path::PathBuf;

fn golden(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("PODWAY_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, expected, "{name} differs; PODWAY_BLESS=1 accepts the new picture");
}

fn ascii() -> Options {
    Options { ascii: true, ..Options::default() }
}

#[test]
fn a_whole_flow_as_ascii() {
    golden("whole.txt", &waterfall(&samples::whole(), &ascii()));
}

#[test]
fn a_whole_flow_with_blocks() {
    golden(
        "whole-unicode.txt",
        &waterfall(&samples::whole(), &Options { evidence: false, ..Options::default() }),
    );
}

#[test]
fn a_flow_in_colour_says_the_same() {
    let plain = waterfall(&samples::whole(), &ascii());
    let color = waterfall(&samples::whole(), &Options { color: true, ..ascii() });
    assert_ne!(plain, color);
    let mut stripped = String::new();
    let mut inside = false;
    for c in color.chars() {
        match c {
            '\u{1b}' => inside = true,
            'm' if inside => inside = false,
            _ if inside => {}
            c => stripped.push(c),
        }
    }
    assert_eq!(stripped, plain);
}

#[test]
fn a_failed_attempt_stays_and_a_running_phase_has_an_arrow() {
    golden("stuck.txt", &waterfall(&samples::stuck(), &ascii()));
}

#[test]
fn what_is_stuck_is_the_first_line() {
    let flow = samples::stuck();
    let late = Some(Micros(flow.records[2].start.0 + 20_000_000));
    let text = waterfall(&flow, &Options { now: late, ..ascii() });
    assert!(text.starts_with("STUCK: NetworkConfigured for 20.0 s (limit 15.0 s): Running\n"), "{text}");
    assert!(!waterfall(&samples::whole(), &Options { now: late, ..ascii() }).contains("STUCK"));
    // What the pod says counts where the flow says nothing.
    let told = Options { stuck: Some("Queued for 1.0 s\u{1b}".into()), ..ascii() };
    assert!(waterfall(&samples::whole(), &told).starts_with("STUCK: Queued for 1.0 s\\u{1b}\n"));
    assert_eq!(waterfall(&flow, &Options { now: late, ..told }), text);
}

#[test]
fn times_of_a_second_are_marked() {
    let text = waterfall(&samples::coarse(), &ascii());
    assert!(text.contains("Ready in ~3000 ms"), "{text}");
    golden("coarse.txt", &text);
}

#[test]
fn hostile_text_cannot_reach_the_terminal() {
    for flow in [samples::hostile(), Flow::default()] {
        for ascii in [true, false] {
            let text = waterfall(&flow, &Options { ascii, ..Options::default() });
            assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
            assert!(!text.contains('\u{202e}'));
            assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
            assert!(!ascii || text.is_ascii());
        }
    }
}

#[test]
fn every_line_fits_at_any_width() {
    for width in [0, 60, 80, 133, 200] {
        let text = waterfall(&samples::whole(), &Options { width, ..ascii() });
        let widest = text.lines().map(|l| l.chars().count()).max().unwrap();
        assert!(widest <= width.max(60), "{width}: {widest}\n{text}");
    }
}
