//! The local registry: its images are built while the control plane starts, and pushed once.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::{UpError, Work};
use crate::images::{Image, ImageError, Programs, Recipe};
use crate::program::Program;
use crate::push::Registry;
use crate::state::write_private;
use crate::{busybox, pause, registry};

/// One image that the registry has not got yet: its recipe's line, and what became of it.
struct Built {
    recipe: Recipe,
    sources: String,
    image: Result<Image, ImageError>,
}

/// The local registry's images.
pub(super) struct Images {
    /// The lines of those that are in it.
    pushed: Vec<String>,
    /// Those that are being built.
    built: tokio::task::JoinHandle<Vec<Built>>,
}

impl Work<'_> {
    /// Builds the registry's images on a thread, while the control plane starts; not those that an
    /// `up` before has pushed already. `podway` is the program that runs in the nodes.
    pub(super) async fn build_images(&self, podway: Option<Programs>) -> Result<Images, UpError> {
        let busybox = busybox::locate(self.progress).await?;
        let pause = pause::locate().await?;
        let mut recipes = vec![Recipe::Busybox { busybox: busybox.clone() }, Recipe::Pause { pause }];
        match Program::Agnhost.locate(self.progress).await {
            Ok(agnhost) => recipes.push(Recipe::Agnhost { agnhost, busybox }),
            // A pod that names it says that there is no such image; all else goes on.
            Err(error) => (self.progress)(&format!("no image of agnhost: {error}")),
        }
        if let Some(podway) = podway {
            // Last: nothing of a demonstration waits for it.
            recipes.push(Recipe::Podway(podway));
        }
        let before = std::fs::read_to_string(self.pushed()).unwrap_or_default();
        let (mut pushed, mut wanted) = (Vec::new(), Vec::new());
        for recipe in recipes {
            let sources = recipe.sources()?;
            if before.lines().any(|line| line == sources) {
                pushed.push(sources);
            } else {
                wanted.push((recipe, sources));
            }
        }
        let built = tokio::task::spawn_blocking(move || {
            let mut shell = None;
            let mut build = |(recipe, sources): (Recipe, String)| {
                let image = recipe.build(&mut shell);
                Built { recipe, sources, image }
            };
            wanted.into_iter().map(&mut build).collect()
        });
        Ok(Images { pushed, built })
    }

    /// The file that says what the images in the registry were built from.
    fn pushed(&self) -> PathBuf {
        self.layout.registry().join("pushed")
    }

    /// Starts the registry on the bridge and fills it; gives its `host:port`.
    pub(super) async fn local_registry(
        &mut self,
        address: Ipv4Addr,
        images: Images,
    ) -> Result<String, UpError> {
        let port = self.port("registry", address, None)?;
        let endpoint = format!("{address}:{port}");
        let daemon = registry::daemon(self.program(Program::Registry)?, self.layout, address, port)?;
        let client = Registry::new(&endpoint);
        self.ensure(&daemon, || client.answers()).await?;
        let mut pushed = images.pushed;
        for Built { recipe, sources, image } in images.built.await.map_err(defect)? {
            match image {
                Ok(image) => {
                    if client.push(&image).await? {
                        (self.progress)(&format!("pushed {}:{}", image.repository, image.tag));
                    }
                    pushed.push(sources);
                }
                // As without agnhost: only the manifests' pods name it.
                Err(error) if matches!(recipe, Recipe::Podway(_)) => {
                    (self.progress)(&format!("no image of podway: {error}"));
                }
                Err(error) => return Err(error.into()),
            }
        }
        write_private(&self.pushed(), pushed.join("\n").as_bytes())?;
        Ok(endpoint)
    }
}

fn defect(error: tokio::task::JoinError) -> ImageError {
    ImageError::Layer(std::io::Error::other(error))
}
