//! The local registry: its images are built while the control plane starts, and pushed once.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use super::{UpError, Work};
use crate::images::{self, Image, ImageError};
use crate::program::Program;
use crate::push::Registry;
use crate::state::write_private;
use crate::{busybox, pause, registry};

/// The local registry's images.
pub(super) enum Images {
    /// They are in it.
    Pushed,
    /// They are being built.
    Built { built: tokio::task::JoinHandle<Result<Vec<Image>, ImageError>>, sources: String },
}

impl Work<'_> {
    /// Builds the registry's images on a thread, while the control plane starts; not those that an
    /// `up` before has pushed already.
    pub(super) async fn build_images(&self) -> Result<Images, UpError> {
        let busybox = busybox::locate(self.progress).await?;
        let pause = pause::locate().await?;
        let agnhost = match Program::Agnhost.locate(self.progress).await {
            Ok(path) => Some(path),
            Err(error) => {
                // A pod that names it says that there is no such image; all else goes on.
                (self.progress)(&format!("no image of agnhost: {error}"));
                None
            }
        };
        let programs: Vec<&Path> = [Some(&busybox), Some(&pause), agnhost.as_ref()]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
            .collect();
        let sources = images::sources(&programs)?;
        if std::fs::read_to_string(self.pushed()).is_ok_and(|text| text == sources) {
            return Ok(Images::Pushed);
        }
        let built = tokio::task::spawn_blocking(move || {
            let layer = images::busybox_layer(&busybox)?;
            let mut built = vec![images::busybox(&layer)?, images::pause(&pause)?];
            if let Some(program) = agnhost {
                built.push(images::agnhost(&program, &layer)?);
            }
            Ok(built)
        });
        Ok(Images::Built { built, sources })
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
        let Images::Built { built, sources } = images else { return Ok(endpoint) };
        for image in built.await.map_err(|e| ImageError::Layer(std::io::Error::other(e)))?? {
            if client.push(&image).await? {
                (self.progress)(&format!("pushed {}:{}", image.repository, image.tag));
            }
        }
        write_private(&self.pushed(), sources.as_bytes())?;
        Ok(endpoint)
    }
}
