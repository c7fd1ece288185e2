//! The runtime in this process, served to a client, until it is told to end.

use crate::cri::{self, Cri};
use crate::node::Node;
use tokio_util::sync::CancellationToken;

pub struct Served {
    pub cri: Cri,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), podway_runtime::run::RunError>>,
}

pub async fn serve(node: &Node) -> Served {
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(podway_runtime::run::run(node.config.clone(), shutdown.clone()));
    let cri = cri::connect(&node.config.listen, || !task.is_finished()).await;
    Served { cri, shutdown, task }
}

impl Served {
    pub async fn end(self) {
        drop(self.cri);
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}
