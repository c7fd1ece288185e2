//! What the runtime tells of usage, and the upkeep of logs and images.

use super::{CallError, Cri, TIMEOUT, timed};
use podway_cri::v1;
use std::time::{Duration, Instant};

/// The most that a checkpoint may take, in seconds: a day.
const CHECKPOINT_MOST: i64 = 24 * 60 * 60;
/// How long a runtime may take to undo one whose time is over.
const CHECKPOINT_UNDONE: Duration = Duration::from_secs(30);

impl Cri {
    /// The usage of every sandbox that runs.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn sandbox_stats(&self) -> Result<Vec<v1::PodSandboxStats>, CallError> {
        let begun = Instant::now();
        let request = timed(v1::ListPodSandboxStatsRequest { filter: None }, TIMEOUT);
        let result = self.runtime.clone().list_pod_sandbox_stats(request).await;
        self.answer("list_podsandbox_stats", begun, result, |r| r.stats).result
    }

    /// The runtime's own metrics of sandboxes and containers, and what they are called.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn sandbox_metrics(
        &self,
    ) -> Result<(Vec<v1::MetricDescriptor>, Vec<v1::PodSandboxMetrics>), CallError> {
        let begun = Instant::now();
        let request = timed(v1::ListMetricDescriptorsRequest {}, TIMEOUT);
        let result = self.runtime.clone().list_metric_descriptors(request).await;
        let descriptors = self.answer("list_metric_descriptors", begun, result, |r| r.descriptors).result?;
        let begun = Instant::now();
        let request = timed(v1::ListPodSandboxMetricsRequest {}, TIMEOUT);
        let result = self.runtime.clone().list_pod_sandbox_metrics(request).await;
        let metrics = self.answer("list_podsandbox_metrics", begun, result, |r| r.pod_metrics).result?;
        Ok((descriptors, metrics))
    }

    /// Where images and writable layers lie, and what they take.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn image_fs(&self) -> Result<v1::ImageFsInfoResponse, CallError> {
        let begun = Instant::now();
        let result = self.image.clone().image_fs_info(timed(v1::ImageFsInfoRequest {}, TIMEOUT)).await;
        self.answer("image_fs_info", begun, result, |r| r).result
    }

    /// Every sandbox and every container that the runtime holds.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn holding(&self) -> Result<(Vec<v1::PodSandbox>, Vec<v1::Container>), CallError> {
        let begun = Instant::now();
        let request = timed(v1::ListPodSandboxRequest { filter: None }, TIMEOUT);
        let result = self.runtime.clone().list_pod_sandbox(request).await;
        let sandboxes = self.answer("list_podsandbox", begun, result, |r| r.items).result?;
        let begun = Instant::now();
        let request = timed(v1::ListContainersRequest { filter: None }, TIMEOUT);
        let result = self.runtime.clone().list_containers(request).await;
        let containers = self.answer("list_containers", begun, result, |r| r.containers).result?;
        Ok((sandboxes, containers))
    }

    /// Has a container's log opened anew: its file was moved away.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn reopen_log(&self, id: &str) -> Result<(), CallError> {
        let begun = Instant::now();
        let request = timed(v1::ReopenContainerLogRequest { container_id: id.to_owned() }, TIMEOUT);
        let result = self.runtime.clone().reopen_container_log(request).await;
        self.answer("reopen_container_log", begun, result, |_| ()).result
    }

    /// Has a checkpoint of a container written. As with the kubelet, its time is not less than that of other calls.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn checkpoint(&self, mut request: v1::CheckpointContainerRequest) -> Result<(), CallError> {
        let least = i64::try_from(TIMEOUT.as_secs()).unwrap_or(i64::MAX);
        request.timeout = request.timeout.clamp(least, CHECKPOINT_MOST);
        // What the runtime itself says of a checkpoint that took too long is worth a little more time.
        let seconds = u64::try_from(request.timeout).unwrap_or_default();
        let limit = Duration::from_secs(seconds) + CHECKPOINT_UNDONE;
        let begun = Instant::now();
        let result = self.runtime.clone().checkpoint_container(timed(request, limit)).await;
        self.answer("checkpoint_container", begun, result, |_| ()).result
    }

    /// Every image.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn images(&self) -> Result<Vec<v1::Image>, CallError> {
        let begun = Instant::now();
        let result = self.image.clone().list_images(timed(v1::ListImagesRequest::default(), TIMEOUT)).await;
        self.answer("list_images", begun, result, |r| r.images).result
    }

    /// Removes an image; one that is not there is removed.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn remove_image(&self, id: &str) -> Result<(), CallError> {
        let begun = Instant::now();
        let image = v1::ImageSpec { image: id.to_owned(), ..Default::default() };
        let request = timed(v1::RemoveImageRequest { image: Some(image) }, TIMEOUT);
        let result = self.image.clone().remove_image(request).await;
        self.answer("remove_image", begun, result, |_| ()).result
    }
}
