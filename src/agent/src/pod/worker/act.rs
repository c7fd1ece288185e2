//! What a worker begins: the core's plan, and the volumes and the end, which are not the core's.

use super::*;

impl Worker {
    /// Begins what is to be done. Returns when to ask again if nothing happens.
    pub(super) fn advance(&mut self, now: Micros) -> Option<Micros> {
        let mut wake = None;
        let plan = loop {
            let plan = core::next(&self.pod, &self.observed, &self.journal, now);
            let end = plan.iter().find_map(|a| match a {
                Action::ReportTerminal(terminal) => Some(terminal.clone()),
                _ => None,
            });
            match end {
                Some(terminal) => {
                    self.journal.terminal = Some(terminal);
                    self.held = None;
                }
                None => break plan,
            }
        };
        // A pod that was at its end when the agent came has no journal of that.
        let over = self.pod.stored_over();
        let ending = over || self.pod.deletion.is_some() || self.journal.terminal.is_some();
        if ending {
            self.ends.cancel();
            let given_up = |r: &&Running| matches!(r.key, Key::Devices | Key::Image(_) | Key::PostStart(_));
            for pull in self.running.values().filter(given_up) {
                pull.abort.abort();
            }
            if self.running.values().any(|r| r.key.makes()) {
                self.settled = false;
                return None;
            }
            if !self.observed.anything_live() {
                self.context.devices.free(&self.pod.uid);
            }
        } else if self.wants_devices {
            self.settled = false;
            return self.want_devices(now);
        } else {
            wake = earlier(wake, self.want_volumes(now));
        }
        let dead = self.observed.containers.iter().all(|c| matches!(c.state, State::Exited { .. }));
        if self.pod.deletion.is_some() && dead {
            wake = earlier(wake, self.unmount(now));
        }
        let idle = plan.is_empty();
        for action in plan {
            wake = earlier(wake, self.act(action, now));
        }
        if ending && idle && self.pod.deletion.is_none() && !self.cleaned && !self.observed.anything_live() {
            wake = earlier(wake, self.clean(now, false));
        }
        self.settled = self.running.values().all(|r| !r.key.acts());
        wake
    }

    fn act(&mut self, action: Action, now: Micros) -> Option<Micros> {
        let cri = self.context.cri.clone();
        let (context, pod) = (self.context.clone(), self.pod.clone());
        let (key, open) = match &action {
            Action::WaitUntil(at) => return Some(*at),
            Action::ReportTerminal(_) => return None,
            Action::PostStart { container, id } => {
                self.post_start(container, id);
                return None;
            }
            Action::CreateSandbox { .. } => {
                (Key::Sandbox, vec![record(Phase::SandboxCreated, None, now, None, "Running")])
            }
            Action::PullImage { container } => {
                let image = self.pod.container(container).map_or("", |c| c.image.as_str());
                let open = record(Phase::ImagesPulled, Some(image), now, None, "Running");
                (Key::Image(container.clone()), vec![open])
            }
            Action::CreateContainer { container, .. } => {
                let open = record(Phase::ContainersCreated, Some(container), now, None, "Running");
                (Key::Container(container.clone()), vec![open])
            }
            Action::StartContainer { container, .. } => {
                let open = record(Phase::ContainersStarted, Some(container), now, None, "Running");
                (Key::Container(container.clone()), vec![open])
            }
            Action::StopContainer { id, .. } => (Key::Stop(id.clone()), Vec::new()),
            Action::StopSandbox { id } => (Key::StopSandbox(id.clone()), Vec::new()),
            Action::RemoveSandbox { id } | Action::RemoveContainer { id } => {
                (Key::Remove(id.clone()), Vec::new())
            }
            Action::DeleteFromApi => return self.end(now),
        };
        if let Some(at) = self.waits(&key, now) {
            return Some(at);
        }
        // A shorter grace goes beside the longer one that is running; anything else runs once.
        let deadline = match &action {
            Action::StopContainer { grace, .. } => add(now, *grace),
            _ => Micros(i64::MAX),
        };
        let shorter = |r: &Running| add(deadline, Duration::from_millis(500)) >= r.deadline;
        if self.running.values().any(|r| r.key == key && shorter(r)) {
            return None;
        }
        let begun = match action {
            Action::CreateSandbox { attempt } => self
                .tasks
                .spawn(async move { Done::Sandbox(actions::create_sandbox(context, pod, attempt).await) }),
            Action::PullImage { container } => {
                let model = pod.container(&container).cloned()?;
                self.tasks.spawn(async move {
                    let pulled =
                        actions::pull::pull(context, pod, &container, &model.image, model.pull).await;
                    Done::Image(container, Box::new(pulled))
                })
            }
            Action::CreateContainer { container, sandbox, restarts } => {
                let making = self.making(&container, sandbox, restarts)?;
                self.tasks.spawn(async move {
                    Done::Container(container, actions::create_container(context, pod, making).await)
                })
            }
            Action::StartContainer { container, id } => {
                let sandbox = self.sandbox_of(&id);
                self.tasks.spawn(async move {
                    let started = actions::start_container(context, container.clone(), id, sandbox).await;
                    Done::Container(container, started)
                })
            }
            Action::StopContainer { id, grace } => {
                if self.pod.deletion.is_some() || self.journal.terminal.is_some() {
                    self.journal.stopping_since.get_or_insert(now);
                }
                let stop = self.stopping(&id, grace);
                // A hook that was begun is not begun again by the next agent.
                self.remember();
                self.tasks.spawn(async move { Done::Took(stop::stop_container(context, pod, stop).await) })
            }
            Action::StopSandbox { id } => {
                self.tasks.spawn(async move { Done::Took(stop::stop_sandbox(cri, id).await) })
            }
            Action::RemoveSandbox { id } => {
                self.tasks.spawn(async move { Done::Took(stop::remove_sandbox(cri, id).await) })
            }
            Action::RemoveContainer { id } => {
                self.tasks.spawn(async move { Done::Took(stop::remove_container(cri, id).await) })
            }
            Action::WaitUntil(_)
            | Action::PostStart { .. }
            | Action::ReportTerminal(_)
            | Action::DeleteFromApi => return None,
        };
        self.running.insert(begun.id(), Running { key, open, abort: begun, deadline });
        None
    }

    fn sandbox_of(&self, id: &str) -> String {
        let found = self.observed.containers.iter().find(|c| c.id == id);
        found.map(|c| c.sandbox.clone()).unwrap_or_default()
    }

    fn making(&self, container: &str, sandbox: String, restarts: u32) -> Option<Making> {
        let placed = self.observed.sandboxes.iter().find(|s| s.id == sandbox)?;
        let debug = self.pod.debug.iter().find(|d| d.model.name == container);
        let target = debug.and_then(|d| d.target.clone()).map(|target| {
            let runs = self.observed.newest(&target).filter(|i| i.state == State::Running);
            let id = runs.map(|i| i.id.clone());
            (target, id)
        });
        Some(Making {
            container: self.pod.container(container)?.clone(),
            attempt: placed.attempt,
            ips: placed.ips.clone(),
            sandbox,
            restarts,
            waited: self.journal.of(container).restart.map(|(delay, _)| delay),
            volumes: self.volumes.clone(),
            image: self.images.get(container).cloned().unwrap_or_default(),
            target,
        })
    }

    /// Nothing of the pod runs: what was made for it goes, then the object.
    fn end(&mut self, now: Micros) -> Option<Micros> {
        if !self.removed {
            return self.clean(now, true);
        }
        // Our own deletion is let end, also when the watch was faster than its answer.
        if self.gone && !self.runs(&Key::Delete) {
            self.finished = true;
            return None;
        }
        // The status of the end is on its way: the object is not taken from under it.
        if self.runs(&Key::Delete) || self.runs(&Key::Patch) {
            return None;
        }
        if let Some(at) = self.waits(&Key::Delete, now) {
            return Some(at);
        }
        let context = self.context.clone();
        let (namespace, name, uid) =
            (self.pod.namespace.clone(), self.pod.name.clone(), self.pod.uid.clone());
        self.spawn(Key::Delete, Vec::new(), async move {
            Done::Deleted(context.api.delete(&namespace, &name, &uid).await)
        });
        None
    }

    /// Takes the volumes of a pod that is going down, beside what else goes down.
    fn unmount(&mut self, now: Micros) -> Option<Micros> {
        if self.unmounted || self.runs(&Key::Unmount) {
            return None;
        }
        if let Some(at) = self.waits(&Key::Unmount, now) {
            return Some(at);
        }
        let (context, uid) = (self.context.clone(), self.pod.uid.clone());
        self.spawn(
            Key::Unmount,
            Vec::new(),
            async move { Done::Unmounted(context.volumes.teardown(&uid).await) },
        );
        None
    }

    fn clean(&mut self, now: Micros, logs: bool) -> Option<Micros> {
        if [Key::Clean(true), Key::Clean(false), Key::Unmount].iter().any(|key| self.runs(key)) {
            return None;
        }
        let key = Key::Clean(logs);
        if let Some(at) = self.waits(&key, now) {
            return Some(at);
        }
        let path = logs.then(|| cri_config::log_directory(&self.context.pod_logs_dir, &self.pod));
        let (context, uid) = (self.context.clone(), self.pod.uid.clone());
        self.spawn(
            key,
            Vec::new(),
            async move { Done::Clean(logs, actions::clean(context, uid, path).await) },
        );
        None
    }
}
