//! Making an image present.

use super::{Outcomes, failed, recorded};
use crate::cri::{Answer, CallError};
use crate::pod::context::Context;
use crate::pod::go_duration::go_duration;
use crate::pod::model::{Pod, PullPolicy};
use crate::pod::start::record;
use crate::pod::{image_name, pull_secrets};
use k8s_openapi::api::core::v1::Secret;
use podway_cri::v1;
use podway_flow::{Outcome, Phase, Record};
use std::time::Duration;
use tonic::Code;

/// A registry that says that nothing has to come has said so by then. Such a pull is not told of, as each event is a
/// write to the API server, and `Started` says it as well.
const PULLING_AFTER: Duration = Duration::from_secs(2);

/// Makes an image present by its policy, for a container or (without a name) for a volume.
pub async fn pull(
    context: Context,
    pod: Pod,
    container: &str,
    image: &str,
    policy: PullPolicy,
) -> Outcomes<v1::Image> {
    let begun = context.clock.now();
    if let Err(message) = image_name::check(image) {
        let mut invalid = record(Phase::ImagesPulled, Some(image), begun, Some(begun), "InvalidImageName");
        invalid.outcome = Outcome::Failed;
        invalid.message = podway_flow::record::bounded(&message, Record::MESSAGE_LIMIT);
        return Outcomes { result: Err(failed("InvalidImageName", message)), records: vec![invalid] };
    }
    let ask = || async {
        let found = context.cri.image_status(image).await.result;
        found.map_err(|e| match e.code {
            Code::InvalidArgument => failed("InvalidImageName", e.message),
            _ => failed("ImageInspectError", format!("Failed to inspect image {image:?}: {}", e.message)),
        })
    };
    if policy != PullPolicy::Always {
        match ask().await {
            Err(e) => return Outcomes { result: Err(e), records: Vec::new() },
            // No event, as below.
            Ok(Some(found)) => {
                let now = context.clock.now();
                let mut present = record(Phase::ImagesPulled, Some(image), begun, Some(now), "Present");
                present.outcome = Outcome::Skipped;
                present.evidence.insert("imageId".to_owned(), found.id.clone());
                return Outcomes { result: Ok(found), records: vec![present] };
            }
            Ok(None) if policy == PullPolicy::Never => {
                let message = format!("Container image \"{image}\" is not present with pull policy of Never");
                let mut never = record(
                    Phase::ImagesPulled,
                    Some(image),
                    begun,
                    Some(context.clock.now()),
                    "ErrImageNeverPull",
                );
                never.outcome = Outcome::Failed;
                never.message.clone_from(&message);
                return Outcomes { result: Err(failed("ErrImageNeverPull", message)), records: vec![never] };
            }
            Ok(None) => {}
        }
    }
    let pulling = || context.note(&pod, container, "Pulling", format!("Pulling image \"{image}\""));
    let mut fetched = std::pin::pin!(fetch(&context, &pod, image));
    let (mut answer, told) = tokio::select! {
        answer = &mut fetched => (answer, false),
        () = tokio::time::sleep(PULLING_AFTER) => {
            pulling();
            (fetched.await, true)
        }
    };
    let now = context.clock.now();
    let records =
        recorded(&mut answer, Phase::ImagesPulled, Some(image), begun, now, ("Pulled", "ErrImagePull"));
    let came = records.iter().any(|r| r.outcome != Outcome::Skipped);
    if came && !told {
        pulling();
    }
    let result = match answer.result {
        Err(CallError { code: Code::InvalidArgument, message }) => Err(failed("InvalidImageName", message)),
        Err(e) => Err(failed("ErrImagePull", e.message)),
        Ok(id) => match ask().await {
            Err(e) => Err(e),
            Ok(found) => {
                let found = found.unwrap_or(v1::Image { id, ..Default::default() });
                if came || told {
                    context.note(&pod, container, "Pulled", pulled(image, now.since(begun), found.size));
                }
                Ok(found)
            }
        },
    };
    Outcomes { result, records }
}

/// Upstream's words for a pull that was done (pkg/kubelet/images/image_manager.go); nothing waits for
/// another pull here, so that both times are one.
fn pulled(image: &str, micros: u64, size: u64) -> String {
    let took = go_duration(Duration::from_millis(micros / 1000));
    format!(
        "Successfully pulled image \"{image}\" in {took} ({took} including waiting). Image size: {size} bytes."
    )
}

/// Pulls with the first of the pod's credentials that the registry takes, or with none.
async fn fetch(context: &Context, pod: &Pod, image: &str) -> Answer<String> {
    let secrets = secrets(context, pod).await;
    let mut last = None;
    for auth in pull_secrets::for_image(&secrets, image) {
        let answer = context.cri.pull_image(image, Some(auth)).await;
        if answer.result.is_ok() {
            return answer;
        }
        last = Some(answer);
    }
    match last {
        Some(refused) => refused,
        None => context.cri.pull_image(image, None).await,
    }
}

/// The pod's `imagePullSecrets`; those of its ServiceAccount were put there when it was created. One
/// that cannot be had is told of, and may not be needed.
async fn secrets(context: &Context, pod: &Pod) -> Vec<Secret> {
    let named = pod.object.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten());
    let names: Vec<&str> = named.map(|r| r.name.as_str()).filter(|n| !n.is_empty()).collect();
    let all = names.iter().map(|name| context.objects.secret(&pod.namespace, name));
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for (name, result) in names.iter().zip(futures::future::join_all(all).await) {
        match result {
            Ok(Some(secret)) => found.push(secret),
            Ok(None) | Err(_) => missing.push(*name),
        }
    }
    if !missing.is_empty() {
        let text = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            missing.join(", ")
        );
        context.tell(pod, "FailedToRetrieveImagePullSecret", &text);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_told_of_in_upstreams_words() {
        assert_eq!(
            pulled("i:1", 1_204_999, 42),
            "Successfully pulled image \"i:1\" in 1.204s (1.204s including waiting). Image size: 42 bytes."
        );
    }
}
