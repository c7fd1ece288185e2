//! ImageLocality: nodes that have the pod's images, weighed by how widely each is spread.

use crate::cache::{NodeState, Snapshot};
use crate::framework::{ClusterEvent, CycleState, GoesBy, MAX_NODE_SCORE, Plugin, Score};
use crate::model::{Part, PodInfo};

/// The plugin.
pub struct ImageLocality;

const MIB: i64 = 1024 * 1024;
const MIN: i64 = 23 * MIB;
const MAX_PER_CONTAINER: i64 = 1000 * MIB;

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn goes_by(&self) -> GoesBy {
        GoesBy::Node(&[Part::Images])
    }

    fn may_help(&self, _: &PodInfo, _: &ClusterEvent) -> bool {
        false
    }
}

/// `:latest` when there is no tag after the last slash.
fn normalized(image: &str) -> String {
    let slash = image.rfind('/').map_or(0, |i| i + 1);
    if image[slash..].contains(':') { image.to_owned() } else { format!("{image}:latest") }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "upstream scales in float64 and truncates"
)]
fn spread(size: i64, nodes_with: usize, nodes: usize) -> i64 {
    (size as f64 * (nodes_with as f64 / nodes.max(1) as f64)) as i64
}

fn score_of(sum: i64, containers: usize) -> i64 {
    let max = MAX_PER_CONTAINER.saturating_mul(i64::try_from(containers).unwrap_or(i64::MAX));
    if max <= MIN {
        return 0;
    }
    MAX_NODE_SCORE * (sum.clamp(MIN, max) - MIN) / (max - MIN)
}

impl Score for ImageLocality {
    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeState, snapshot: &Snapshot) -> i64 {
        let sum = pod
            .images
            .iter()
            .filter_map(|image| {
                let name = normalized(image);
                let size = *node.info.images.get(&name)?;
                Some(spread(size, snapshot.nodes_with_image(&name), snapshot.nodes.len()))
            })
            .fold(0, i64::saturating_add);
        score_of(sum, pod.container_count)
    }

    fn beside(&self, pod: &PodInfo, snapshot: &Snapshot) -> Vec<usize> {
        pod.images.iter().map(|image| snapshot.nodes_with_image(&normalized(image))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("busybox", "busybox:latest")]
    #[case("busybox:1", "busybox:1")]
    #[case("host:5000/busybox", "host:5000/busybox:latest")]
    #[case("a/b@sha256:00", "a/b@sha256:00")]
    fn names(#[case] image: &str, #[case] want: &str) {
        assert_eq!(normalized(image), want);
    }

    // Upstream's image_locality_test.go: two nodes, images of 40, 250 and so on MiB.
    #[rstest]
    #[case(0, 1, 0)]
    #[case(23 * MIB, 1, 0)]
    #[case(250 * MIB / 2, 1, 10)]
    #[case(2000 * MIB, 1, 100)]
    #[case((40 + 300) * MIB / 2, 2, 7)]
    fn scores(#[case] sum: i64, #[case] containers: usize, #[case] want: i64) {
        assert_eq!(score_of(sum, containers), want);
    }

    #[test]
    fn an_image_on_half_the_nodes_counts_half() {
        assert_eq!(spread(100, 1, 2), 50);
        assert_eq!(spread(100, 1, 3), 33);
    }
}
