//! What the pages say is what the terminal says; what comes from outside is only text.

use super::*;
use crate::picture::picture;
use crate::pulls::{Layer, LayerState, Pull};
use crate::waterfall::{Options, waterfall};
use crate::{numbers, samples};

fn framed() -> Frame {
    Frame {
        live: Some("/live".into()),
        scope: "namespace default".into(),
        troubles: vec!["<i>no</i>".into()],
    }
}

fn entries() -> Vec<Entry> {
    [samples::whole(), samples::stuck(), samples::coarse(), samples::hostile()]
        .into_iter()
        .map(|flow| Entry { flow, state: State::Starting })
        .collect()
}

/// A pull whose every text is the flow's name.
fn told(flow: &Flow) -> Told {
    let name = || flow.pod.name.clone();
    let layer =
        Layer { digest: name(), size_bytes: 2048, received_bytes: 512, phase: LayerState::Downloading };
    Ok(vec![Pull {
        image: name(),
        phase: crate::pulls::State::Fetching,
        total_bytes: 2048,
        received_bytes: 512,
        layers: vec![layer],
        ..Pull::default()
    }])
}

fn pages() -> Vec<String> {
    let flows: Vec<Flow> = entries().into_iter().map(|e| e.flow).collect();
    let now = flows[0].records[0].start;
    let limits = crate::stuck::Limits::default();
    let evil = &flows[3];
    let compared = numbers::compare((&numbers::name(evil), &flows[..2]), ("b", &flows[2..]));
    let mut pages: Vec<String> =
        flows.iter().map(|f| pod(f, Some(now), &limits, Some(&told(f)), &framed())).collect();
    let pulls = [(evil.pod.name.clone(), told(evil)), ("b".into(), Err(evil.pod.name.clone()))].into();
    let hostile = Overview { entries: entries(), selector: evil.pod.name.clone(), pulls };
    pages.push(overview(&hostile, now, &framed()));
    pages.push(compare(Some(&compared), [&evil.pod.name, "b"], Some(&evil.pod.name), &framed()));
    pages.push(notice(&evil.pod.name, &evil.pod.name, &framed()));
    pages.extend(flows.iter().map(|f| page(f, None)));
    pages
}

#[test]
fn the_page_has_the_terminals_numbers_to_the_digit() {
    for flow in [samples::whole(), samples::stuck(), samples::coarse()] {
        let page = page(&flow, None);
        for row in &picture(&flow, None).rows {
            let duration = row.duration.replace('>', "&gt;");
            let cells = format!("<td class=\"n\">{}</td><td class=\"n\">{duration}</td>", row.start);
            assert!(page.contains(&cells), "{cells}");
            assert!(waterfall(&flow, &Options::default()).contains(&row.duration));
        }
    }
}

#[test]
fn hostile_text_is_only_text() {
    for page in pages() {
        assert!(!page.contains('\u{1b}') && !page.contains('\u{202e}') && !page.contains('\u{7}'));
        // The one script is ours, where there is one; and no tag has a handler or a style.
        assert_eq!(page.matches("<script").count(), usize::from(page.contains("data-live")));
        assert!(!page.contains("alert(1)</script>") && !page.contains("<i>no"));
        for attribute in [" style=", " onload=", " onerror=", "javascript:", "http://", "https://"] {
            assert!(!page.replace(SCRIPT, "").contains(attribute), "{attribute}");
        }
    }
}

#[test]
fn the_policy_names_the_digests_of_what_the_page_has() {
    let page = &pages()[0];
    let policy = policy(true);
    assert!(
        !policy.contains("unsafe") && page.contains(&policy.replace('\'', "&#39;")) || page.contains(&policy)
    );
    let between = |from: &str, to: &str| {
        let start = page.find(from).unwrap() + from.len();
        page[start..start + page[start..].find(to).unwrap()].to_owned()
    };
    for inside in [between("<style>", "</style>"), between("<script>", "</script>")] {
        let digest = BASE64.encode(Sha256::digest(&inside));
        assert!(policy.contains(&format!("'sha256-{digest}'")));
    }
}

#[test]
fn a_name_is_one_segment_of_a_path() {
    assert_eq!(encoded("web-0.a"), "web-0.a");
    assert_eq!((encoded(".."), encoded("a/b?c#d")), ("%2E%2E".to_owned(), "a%2Fb%3Fc%23d".to_owned()));
    assert_eq!(encoded("é"), "%C3%A9");
}

#[test]
fn the_overview_tells_what_waits_and_since_when() {
    let stuck = samples::stuck();
    let start = stuck.records[2].start;
    let late = Micros(start.0 + 20_000_000);
    let of = Overview { entries: vec![Entry { flow: stuck, state: State::Starting }], ..Overview::default() };
    let page = overview(&of, late, &Frame::default());
    assert!(
        page.contains("20.0 s stuck") && page.contains("15.0 s") && page.contains("1 pods, 1 stuck"),
        "{page}"
    );
    let calm = overview(&Overview::default(), late, &Frame::default());
    assert!(calm.contains("Nothing waits.") && calm.contains("No pod."));
}

#[test]
fn a_pull_that_runs_is_a_bar_and_a_node_that_does_not_tell_is_a_line() {
    let flow = samples::stuck();
    let section = "aria-labelledby=\"pulls\"";
    let page = |told: Option<&Told>| pod(&flow, None, &crate::stuck::Limits::default(), told, &framed());
    let running = page(Some(&told(&flow)));
    assert!(running.contains("25%  512 B of 2.0 KiB") && running.contains("width=\"25.00%\""), "{running}");
    assert!(running.contains("downloading 25% of 2.0 KiB"));
    let ended = told(&flow).map(|pulls| {
        let over = |pull| Pull { phase: crate::pulls::State::Done, ..pull };
        pulls.into_iter().map(over).collect()
    });
    assert!(!page(None).contains(section) && !page(Some(&ended)).contains(section));
    assert!(page(Some(&Err("no <b>rights</b>".into()))).contains("Not shown: no &lt;b&gt;rights"));
    let many = Overview {
        pulls: (0..3).map(|n| (format!("n{n}"), Err(format!("no {n}")))).collect(),
        ..Overview::default()
    };
    assert!(overview(&many, Micros(0), &framed()).contains("Not shown: no 0, and 2 more"));
}
