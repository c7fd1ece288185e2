//! The recorder: `begin` a phase, end it once; nothing else makes a record.

use crate::record::bounded;
use crate::{Clock, Micros, Outcome, Phase, Record, Resolution, Writer};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Collects the records of one pod, or of one call, in one process. Clones share the collection.
#[derive(Clone, Debug)]
pub struct Recorder {
    writer: Writer,
    clock: Clock,
    records: Arc<Mutex<Vec<Record>>>,
}

impl Recorder {
    /// An empty recorder of `writer` on the process' clock.
    #[must_use]
    pub fn new(writer: Writer, clock: Clock) -> Self {
        Recorder { writer, clock, records: Arc::default() }
    }

    /// The clock that its times come from.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Begins a phase of the pod as a whole.
    #[must_use]
    pub fn begin(&self, phase: Phase) -> Span {
        self.begin_at(phase, None, self.clock.now())
    }

    /// Begins a phase of one of the pod's parts.
    #[must_use]
    pub fn begin_for(&self, phase: Phase, subject: &str) -> Span {
        self.begin_at(phase, Some(subject), self.clock.now())
    }

    /// Begins a phase at a time that has passed (the pod came on the watch before the recorder was made).
    #[must_use]
    pub fn begin_at(&self, phase: Phase, subject: Option<&str>, start: Micros) -> Span {
        Span {
            record: Some(Record {
                phase,
                subject: subject.map(str::to_owned),
                writer: self.writer,
                attempt: 1,
                start,
                end: None,
                queued_micros: 0,
                outcome: Outcome::Running,
                reason: "Running".to_owned(),
                message: String::new(),
                resolution: Resolution::Micros,
                evidence: BTreeMap::new(),
            }),
            recorder: self.clone(),
        }
    }

    /// Adds records that another process made.
    pub fn extend(&self, records: impl IntoIterator<Item = Record>) {
        self.lock().extend(records);
    }

    /// A copy of what was recorded so far.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Record> {
        self.lock().clone()
    }

    /// Takes what was recorded so far and leaves the recorder empty.
    #[must_use]
    pub fn take(&self) -> Vec<Record> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A phase that has begun. Ending it consumes it; a span that is dropped is recorded as failed
/// with reason `Cancelled`, so that no phase can vanish from the picture.
#[derive(Debug)]
pub struct Span {
    record: Option<Record>,
    recorder: Recorder,
}

impl Span {
    /// Adds a fact.
    pub fn note(&mut self, key: &str, value: impl ToString) -> &mut Self {
        if let Some(record) = &mut self.record {
            record.evidence.insert(key.to_owned(), value.to_string());
        }
        self
    }

    /// Sets the attempt, 1 for the first.
    pub fn attempt(&mut self, attempt: u32) -> &mut Self {
        if let Some(record) = &mut self.record {
            record.attempt = attempt;
        }
        self
    }

    /// Adds time that was spent waiting, in µs.
    pub fn queued(&mut self, micros: u64) -> &mut Self {
        if let Some(record) = &mut self.record {
            record.queued_micros += micros;
        }
        self
    }

    /// The phase is done. `reason` is a CamelCase word, e.g. `Mounted`.
    pub fn succeed(self, reason: &str) -> Record {
        self.end(Outcome::Succeeded, reason, "")
    }

    /// There was nothing to do.
    pub fn skip(self, reason: &str) -> Record {
        self.end(Outcome::Skipped, reason, "")
    }

    /// The phase failed.
    pub fn fail(self, reason: &str, message: &str) -> Record {
        self.end(Outcome::Failed, reason, message)
    }

    fn end(mut self, outcome: Outcome, reason: &str, message: &str) -> Record {
        self.finish(outcome, reason, message).expect("a span ends once: ending it consumes it")
    }

    fn finish(&mut self, outcome: Outcome, reason: &str, message: &str) -> Option<Record> {
        let mut record = self.record.take()?;
        record.end = Some(self.recorder.clock.now().max(record.start));
        record.outcome = outcome;
        reason.clone_into(&mut record.reason);
        record.message = bounded(message, Record::MESSAGE_LIMIT);
        self.recorder.lock().push(record.clone());
        Some(record)
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.finish(Outcome::Failed, "Cancelled", "given up before it ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_is_recorded_once_with_monotone_times() {
        let recorder = Recorder::new(Writer::Agent, Clock::new());
        let mut span = recorder.begin_for(Phase::VolumesMounted, "token");
        span.note("kind", "projected");
        let record = span.succeed("Mounted");
        assert_eq!(recorder.snapshot(), vec![record.clone()]);
        assert!(record.end.unwrap() >= record.start);
        assert_eq!(record.evidence["kind"], "projected");
    }

    #[test]
    fn a_dropped_span_stays_in_the_picture() {
        let recorder = Recorder::new(Writer::Runtime, Clock::new());
        drop(recorder.begin(Phase::NetworkConfigured));
        let records = recorder.take();
        assert_eq!((records[0].outcome, records[0].reason.as_str()), (Outcome::Failed, "Cancelled"));
        assert!(recorder.snapshot().is_empty());
    }
}
