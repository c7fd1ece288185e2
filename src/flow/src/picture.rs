//! What a picture of a flow shows, before it is text or HTML: rows, bars in µs, the lines below.
//!
//! Both renderers take every number from here, already formatted, so that they agree to the digit.
//! Pure: the same flow and the same `now` give the same picture. Nothing is guessed: a phase without
//! a record has no bar, and a time with a resolution of a second is marked `~`.

use crate::{Flow, Micros, Outcome, Phase, PhaseSummary, Record, Resolution, path, stuck};

/// The most parts (containers, images, volumes, attempts) of one phase that get a row of their own.
const PART_ROWS: usize = 16;

/// A flow, laid out.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// `namespace/name`.
    pub name: String,
    /// The node; `-` before the pod is bound.
    pub node: String,
    /// The first time in the flow, RFC 3339; `-` if nothing is recorded.
    pub created: String,
    /// What is stuck at `now`, the worst first: the first lines of a picture.
    pub stuck: Vec<String>,
    /// `Ready in 84.21 ms`, or where it stands.
    pub headline: String,
    /// The length of the time axis in µs, at least 1.
    pub horizon: u64,
    /// A row per phase, and one per part where a phase has several.
    pub rows: Vec<Row>,
    /// The slowest phases, with their share of the whole.
    pub slowest: Vec<String>,
    /// The chain of phases that decided the end.
    pub critical_path: Vec<Phase>,
    /// What a reader must know to read the times right.
    pub notes: Vec<String>,
    /// The facts, one entry per record.
    pub evidence: Vec<Evidence>,
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The article's steps, e.g. `13-15`; empty on the row of a part.
    pub steps: String,
    /// The phase, or the part's name.
    pub label: String,
    /// Whether it is a part of the phase above.
    pub part: bool,
    /// Start since the origin in ms, or `-`.
    pub start: String,
    /// Duration in ms, with `>` while it runs, or `-`.
    pub duration: String,
    /// The bar.
    pub segments: Vec<Segment>,
    /// A word beside the bar.
    pub note: String,
}

/// A stretch of a bar, in µs since the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// From.
    pub from: u64,
    /// To, not before `from`.
    pub to: u64,
    /// What the time was spent on.
    pub kind: Kind,
}

/// What time was spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Waiting in a queue or for a lock.
    Queue,
    /// Work.
    Work,
    /// Work that has not ended.
    Running,
    /// An attempt that failed.
    Failed,
}

/// The facts of one record.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// The article's steps.
    pub steps: String,
    /// Phase, part, attempt.
    pub title: String,
    /// Who wrote it, how it ended.
    pub verdict: String,
    /// How it ended.
    pub outcome: Outcome,
    /// For people; may be empty.
    pub message: String,
    /// Key and value.
    pub facts: Vec<(String, String)>,
}

/// Lays a flow out. `now` is the time up to which running phases are drawn; without it, they are
/// drawn to the last time in the flow, so that a flow on disk always gives the same picture.
#[must_use]
pub fn picture(flow: &Flow, now: Option<Micros>) -> Picture {
    let origin = flow.records.iter().map(|r| r.start).min().unwrap_or_default();
    let last = flow.records.iter().map(|r| r.end.unwrap_or(r.start)).max().unwrap_or(origin);
    let running = flow.records.iter().any(|r| r.end.is_none());
    let end = if running { now.map_or(last, |now| now.max(last)) } else { last };
    let frame = Frame { origin, end };
    let phases = flow.phases();
    Picture {
        name: format!("{}/{}", flow.pod.namespace, flow.pod.name),
        node: if flow.pod.node.is_empty() { "-".to_owned() } else { flow.pod.node.clone() },
        created: if flow.records.is_empty() { "-".to_owned() } else { origin.rfc3339() },
        stuck: stuck(flow, now),
        headline: headline(flow, &phases, frame),
        horizon: end.since(origin).max(1),
        rows: Phase::ALL.iter().flat_map(|&phase| rows_of(flow, phase, frame)).collect(),
        slowest: slowest(flow, &phases),
        critical_path: path::critical(&phases).iter().map(|step| step.phase).collect(),
        notes: notes(flow, &phases),
        evidence: evidence(flow),
    }
}

fn stuck(flow: &Flow, now: Option<Micros>) -> Vec<String> {
    let Some(now) = now else { return Vec::new() };
    let all = stuck::judge(flow, &stuck::Limits::default(), now);
    all.iter().map(|w| format!("STUCK: {}", w.line(now))).collect()
}

/// µs as ms with two decimals: the one number format of every picture.
#[must_use]
pub fn ms(micros: u64) -> String {
    // Rounded to the nearest 10 µs in integers, so that no float decides a digit.
    let hundredths = micros.saturating_add(5) / 10;
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// µs as ms, `~` and no decimals where the times are only good to a second.
#[must_use]
pub fn ms_at(micros: u64, resolution: Resolution) -> String {
    match resolution {
        Resolution::Micros => ms(micros),
        Resolution::Second => format!("~{}", micros.saturating_add(500) / 1000),
    }
}

/// A cell of the table: ms, or seconds from 100 s on, where a cell would be too narrow for ms.
fn cell(micros: u64, resolution: Resolution) -> String {
    const SECONDS_FROM: u64 = 100_000_000;
    match resolution {
        _ if micros < SECONDS_FROM => ms_at(micros, resolution),
        Resolution::Micros => format!("{}.{}s", micros / 1_000_000, micros % 1_000_000 / 100_000),
        Resolution::Second => format!("~{}s", micros / 1_000_000),
    }
}

/// The article's steps of a phase: `13-15`, `9,11`, `-` where the article is silent.
#[must_use]
pub fn steps(phase: Phase) -> String {
    match phase.steps() {
        [] => "-".to_owned(),
        [first, .., last] if usize::from(last - first) + 1 == phase.steps().len() && last - first > 1 => {
            format!("{first}-{last}")
        }
        steps => steps.iter().map(u8::to_string).collect::<Vec<_>>().join(","),
    }
}

#[derive(Clone, Copy)]
struct Frame {
    origin: Micros,
    end: Micros,
}

fn rows_of(flow: &Flow, phase: Phase, frame: Frame) -> Vec<Row> {
    let Some(summary) = flow.summary(phase) else {
        let passed = flow.records.iter().any(|r| r.phase > phase);
        return vec![Row {
            steps: steps(phase),
            label: phase.name().to_owned(),
            part: false,
            start: "-".to_owned(),
            duration: "-".to_owned(),
            segments: Vec::new(),
            note: if passed { "not recorded" } else { "not begun" }.to_owned(),
        }];
    };
    let records = flow.records_of(phase);
    let mut rows = vec![Row {
        steps: steps(phase),
        label: phase.name().to_owned(),
        part: false,
        start: cell(summary.start.since(frame.origin), summary.resolution),
        duration: duration(summary.start, summary.end, summary.resolution, frame),
        segments: records.iter().flat_map(|r| segments(r, frame)).collect(),
        note: note(summary.outcome, &summary.reason, summary.queued_micros),
    }];
    if records.len() > 1 {
        rows.extend(records.iter().take(PART_ROWS).map(|r| part_row(r, frame)));
        if let Some(more) = records.len().checked_sub(PART_ROWS).filter(|&more| more > 0) {
            rows.push(Row {
                steps: String::new(),
                label: format!("{more} more"),
                part: true,
                start: String::new(),
                duration: String::new(),
                segments: Vec::new(),
                note: String::new(),
            });
        }
    }
    rows
}

fn part_row(record: &Record, frame: Frame) -> Row {
    Row {
        steps: String::new(),
        label: part_name(record),
        part: true,
        start: cell(record.start.since(frame.origin), record.resolution),
        duration: duration(record.start, record.end, record.resolution, frame),
        segments: segments(record, frame),
        note: note(record.outcome, &record.reason, record.queued_micros),
    }
}

fn part_name(record: &Record) -> String {
    let subject = record.subject.as_deref().unwrap_or("pod");
    if record.attempt > 1 { format!("{subject} try {}", record.attempt) } else { subject.to_owned() }
}

fn duration(start: Micros, end: Option<Micros>, resolution: Resolution, frame: Frame) -> String {
    match end {
        Some(end) => cell(end.since(start), resolution),
        None => format!("{}>", cell(frame.end.since(start), resolution)),
    }
}

fn segments(record: &Record, frame: Frame) -> Vec<Segment> {
    let from = record.start.since(frame.origin);
    let to = record.end.unwrap_or(frame.end).since(frame.origin).max(from);
    // The queue is nothing but waiting, whether or not its writer said so a second time.
    let queued = if record.phase == Phase::Queued { to - from } else { record.queued_micros.min(to - from) };
    let work = match (record.outcome, record.end) {
        (Outcome::Failed, _) => Kind::Failed,
        (_, None) => Kind::Running,
        _ => Kind::Work,
    };
    let mut segments = Vec::new();
    if queued > 0 {
        segments.push(Segment { from, to: from + queued, kind: Kind::Queue });
    }
    if queued < to - from || queued == 0 || work != Kind::Work {
        segments.push(Segment { from: from + queued, to, kind: work });
    }
    segments
}

fn note(outcome: Outcome, reason: &str, queued: u64) -> String {
    match outcome {
        Outcome::Failed | Outcome::Skipped => reason.to_owned(),
        Outcome::Running => "running".to_owned(),
        Outcome::Succeeded if queued > 0 => format!("queue {}", ms(queued)),
        Outcome::Succeeded => String::new(),
    }
}

fn headline(flow: &Flow, phases: &[PhaseSummary], frame: Frame) -> String {
    let coarse = phases
        .iter()
        .any(|s| (s.start == frame.origin || s.phase == Phase::Ready) && s.resolution == Resolution::Second);
    let resolution = if coarse { Resolution::Second } else { Resolution::Micros };
    let ready = phases.iter().any(|s| s.phase == Phase::Ready && s.outcome == Outcome::Succeeded);
    if let (true, Some(total)) = (ready, flow.total()) {
        return format!("Ready in {} ms", ms_at(total, resolution));
    }
    let age = ms_at(frame.end.since(frame.origin), resolution);
    if let Some(failed) = phases.iter().find(|s| s.outcome == Outcome::Failed) {
        return format!("not Ready after {age} ms: {} failed: {}", failed.phase, failed.reason);
    }
    if let Some(running) = phases.iter().find(|s| s.outcome == Outcome::Running) {
        return format!("not Ready after {age} ms: in {}", running.phase);
    }
    match phases.last() {
        None => "nothing recorded yet".to_owned(),
        Some(last) => format!("not Ready after {age} ms: last done {}", last.phase),
    }
}

fn slowest(flow: &Flow, phases: &[PhaseSummary]) -> Vec<String> {
    let total = flow.total().unwrap_or(0).max(1);
    let mut ended: Vec<(&PhaseSummary, u64)> =
        phases.iter().filter_map(|s| Some((s, s.end?.since(s.start)))).filter(|&(_, d)| d > 0).collect();
    ended.sort_by_key(|&(s, d)| (std::cmp::Reverse(d), s.phase));
    ended
        .iter()
        .take(3)
        .map(|&(s, d)| {
            format!(
                "{} {} ms ({}%)",
                s.phase,
                ms_at(d, s.resolution),
                (d.saturating_mul(100) / total).min(100)
            )
        })
        .collect()
}

fn notes(flow: &Flow, phases: &[PhaseSummary]) -> Vec<String> {
    let mut notes = Vec::new();
    if flow.records.iter().any(|r| r.resolution == Resolution::Second) {
        notes.push("~ times are good to 1 s: they come from conditions or creationTimestamp".to_owned());
    }
    // A cause cannot begin after its effect: where it seems to, the writers' clocks differ.
    for (cause, effect) in [(Phase::Requested, Phase::Queued), (Phase::Bound, Phase::Observed)] {
        let of = |phase| phases.iter().find(|s| s.phase == phase && s.resolution == Resolution::Micros);
        if let (Some(c), Some(e)) = (of(cause), of(effect))
            && e.start < c.start
        {
            notes.push(format!(
                "clock skew: {effect} begins {} ms before {cause}",
                ms(c.start.since(e.start))
            ));
        }
    }
    notes
}

fn evidence(flow: &Flow) -> Vec<Evidence> {
    Phase::ALL
        .iter()
        .flat_map(|&phase| flow.records_of(phase))
        .map(|r| Evidence {
            steps: steps(r.phase),
            title: match (&r.subject, r.attempt) {
                (None, 0 | 1) => r.phase.name().to_owned(),
                _ => format!("{} {}", r.phase, part_name(r)),
            },
            verdict: format!("{}, by {}", r.reason, r.writer.name()),
            outcome: r.outcome,
            message: r.message.clone(),
            facts: r.evidence.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_in_integers() {
        for (micros, text) in
            [(0, "0.00"), (4, "0.00"), (5, "0.01"), (84_213, "84.21"), (1_234_567, "1234.57")]
        {
            assert_eq!(ms(micros), text);
        }
        assert_eq!(ms_at(2_000_000, Resolution::Second), "~2000");
    }

    #[test]
    fn steps_read_as_the_article_numbers_them() {
        assert_eq!(steps(Phase::ContainersCreated), "13-15");
        assert_eq!(steps(Phase::RootfsPrepared), "9,11");
        assert_eq!(steps(Phase::Persisted), "2,3");
        assert_eq!(steps(Phase::Ready), "-");
    }
}
