//! The devices of a pod, without which the node does not take it.

use super::*;

/// `ErrorReasonUnexpected` of pkg/kubelet/cm/admission/errors.go.
const REASON: &str = "UnexpectedAdmissionError";

impl Worker {
    /// Gets a new pod its devices, before anything else of it begins.
    pub(super) fn want_devices(&mut self, now: Micros) -> Option<Micros> {
        if self.runs(&Key::Devices) {
            return None;
        }
        if let Some(at) = self.waits(&Key::Devices, now) {
            return Some(at);
        }
        let (devices, object) = (Arc::clone(&self.context.devices), Arc::clone(&self.pod.object));
        let (uid, open) = (self.pod.uid.clone(), record(Phase::Admitted, None, self.born, None, "Running"));
        self.spawn(Key::Devices, vec![open], async move {
            let result = match &object.spec {
                Some(spec) => devices.allocate(&uid, spec).await,
                None => Ok(()),
            };
            Done::Devices(result)
        });
        None
    }

    /// Takes a new pod on that has its devices now, or refuses one that cannot have them.
    pub(super) fn got_devices(&mut self, result: Result<(), DeviceError>, now: Micros) {
        self.wants_devices = false;
        let refused = result.err().map(|error| Terminal {
            failed: true,
            reason: REASON.to_owned(),
            message: format!(
                "Pod was rejected: Allocate failed due to {}, which is unexpected",
                chain(&error)
            ),
        });
        self.start.absorb([admitted(self.born, now, refused.as_ref())]);
        // It may be at its end for another reason by now.
        if let Some(refused) = refused.filter(|_| self.journal.terminal.is_none()) {
            self.context.metrics.refused(REASON);
            self.warn(REASON, &refused.message);
            self.journal.terminal = Some(refused);
            self.held = None;
        }
    }
}
