//! What kstatus, Argo CD and Flux make of a `PodFlow`: their own code is asked (`tests/go/ecosystem`), with the
//! files that `manifests/gitops` has for them.

use super::{file, text};
use anyhow::{Context as _, ensure};
use podway_api::podflow::{PodFlow, PodFlowStatus};
use podway_flow::{Clock, Flow, Phase, PodRef, Recorder, Writer};
use podway_tests::go;
use serde_json::Value;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

fn ask(program: &Path, args: &[&str], object: &PodFlow) -> anyhow::Result<Value> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("stdin")?.write_all(&serde_json::to_vec(object)?)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// An object as the API server has it once the agent has written it.
fn object(flow: &Flow) -> PodFlow {
    let mut object = PodFlow::for_pod(&flow.pod);
    object.metadata.generation = Some(1);
    object.status = Some(PodFlowStatus::from_flow(flow, &[], Some(1)));
    object
}

/// One whose start goes on, one that failed, one that is Ready.
fn flows() -> [Flow; 3] {
    let pod = PodRef { namespace: "d".into(), name: "p".into(), uid: "u".into(), node: "n".into() };
    let with = |end: &dyn Fn(&Recorder)| {
        let recorder = Recorder::new(Writer::Agent, Clock::new());
        recorder.begin(Phase::Observed).succeed("Seen");
        end(&recorder);
        Flow { pod: pod.clone(), records: recorder.take() }
    };
    [
        with(&|_| {}),
        with(&|r| drop(r.begin(Phase::ImagesPulled).fail("PullFailed", "no such image"))),
        with(&|r| drop(r.begin(Phase::Ready).succeed("Ready"))),
    ]
}

#[test]
fn each_of_them_understands_a_podflow() -> anyhow::Result<()> {
    let program = go::build("ecosystem", Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let script = file("manifests/gitops/health.lua").display().to_string();
    let flux: Value = serde_yaml::from_str(&text("manifests/gitops/flux.yaml")?)?;
    let expressions = &flux["spec"]["healthCheckExprs"][0];
    ensure!(expressions["apiVersion"] == "podway.dev/v1alpha1" && expressions["kind"] == "PodFlow", "{flux}");
    for (flow, kstatus, argo, told, current) in [
        (&flows()[0], "InProgress", "Progressing", "in Observed", "inProgress"),
        // A failed attempt is tried again: kstatus, which knows no failure here, waits.
        (&flows()[1], "InProgress", "Degraded", "ImagesPulledFailed: no such image", "failed"),
        (&flows()[2], "Current", "Healthy", "Ready in ", "current"),
    ] {
        let object = object(flow);
        let said = ask(&program, &["kstatus"], &object)?;
        ensure!(said["status"] == kstatus, "kstatus says {said} and not {kstatus}");
        let said = ask(&program, &["lua", &script], &object)?;
        let message = said["message"].as_str().unwrap_or_default();
        ensure!(said["status"] == argo && message.starts_with(told), "Argo CD says {said}");
        for name in ["current", "failed", "inProgress"] {
            let said = ask(&program, &["cel", expressions[name].as_str().context(name)?], &object)?;
            ensure!(said == (name == current), "Flux: {name} is {said} where {current} holds");
        }
    }
    // Without a status: nothing is known. kstatus counts that as done, which is why a pod is waited for by itself.
    let bare = PodFlow::for_pod(&flows()[0].pod);
    ensure!(ask(&program, &["kstatus"], &bare)?["status"] == "Current");
    ensure!(ask(&program, &["lua", &script], &bare)?["status"] == "Progressing");
    // A status of another generation is not believed.
    let mut stale = object(&flows()[2]);
    stale.metadata.generation = Some(2);
    ensure!(ask(&program, &["kstatus"], &stale)?["status"] == "InProgress");
    Ok(())
}

#[test]
fn the_config_map_has_the_script() -> anyhow::Result<()> {
    let map: Value = serde_yaml::from_str(&text("manifests/gitops/argocd-cm.yaml")?)?;
    let inside = &map["data"]["resource.customizations.health.podway.dev_PodFlow"];
    ensure!(inside.as_str() == Some(&text("manifests/gitops/health.lua")?), "{inside}");
    Ok(())
}
