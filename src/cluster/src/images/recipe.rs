//! An image to be built, and from what: one whose sources are those of the image that is in the
//! registry already is not built again.

use std::fs;
use std::path::{Path, PathBuf};

use super::{AGNHOST, BUSYBOX, Image, ImageError, Layer, PAUSE, PODWAY, Programs};

/// What an image is built from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recipe {
    /// [`BUSYBOX`].
    Busybox {
        /// A static busybox.
        busybox: PathBuf,
    },
    /// [`PAUSE`].
    Pause {
        /// The static program.
        pause: PathBuf,
    },
    /// [`AGNHOST`].
    Agnhost {
        /// The program.
        agnhost: PathBuf,
        /// The shell beside it.
        busybox: PathBuf,
    },
    /// [`PODWAY`].
    Podway(Programs),
}

impl Recipe {
    /// The image's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Busybox { .. } => BUSYBOX,
            Self::Pause { .. } => PAUSE,
            Self::Agnhost { .. } => AGNHOST,
            Self::Podway(_) => PODWAY,
        }
    }

    fn programs(&self) -> Vec<PathBuf> {
        match self {
            Self::Busybox { busybox } => vec![busybox.clone()],
            Self::Pause { pause } => vec![pause.clone()],
            Self::Agnhost { agnhost, busybox } => vec![agnhost.clone(), busybox.clone()],
            Self::Podway(programs) => programs.places().into_iter().map(|(path, _)| path).collect(),
        }
    }

    /// A line that is the same when the image is: its programs by path, length and time, and this
    /// program's version for how it builds.
    pub fn sources(&self) -> Result<String, ImageError> {
        use std::os::unix::fs::MetadataExt as _;
        let mut text = format!("{} by podway {} layout 5", self.name(), env!("CARGO_PKG_VERSION"));
        for program in self.programs() {
            let path = program.display().to_string();
            let found =
                fs::metadata(&program).map_err(|source| ImageError::Read { path: path.clone(), source })?;
            text.push_str(&format!("; {path} {} {}.{:09}", found.len(), found.mtime(), found.mtime_nsec()));
        }
        Ok(text)
    }

    /// Builds it; `shell` keeps busybox' layer, which two images have.
    pub fn build(&self, shell: &mut Option<Layer>) -> Result<Image, ImageError> {
        let mut layer = |busybox: &Path| match shell {
            Some(layer) => Ok(layer.clone()),
            None => super::busybox_layer(busybox).inspect(|layer| *shell = Some(layer.clone())),
        };
        match self {
            Self::Busybox { busybox } => super::busybox(&layer(busybox)?),
            Self::Pause { pause } => super::pause(pause),
            Self::Agnhost { agnhost, busybox } => super::agnhost(agnhost, &layer(busybox)?),
            Self::Podway(programs) => super::podway(PODWAY, programs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_program_is_another_source() {
        let dir = tempfile::tempdir().unwrap();
        let pause = dir.path().join("pause");
        let recipe = Recipe::Pause { pause: pause.clone() };
        assert!(recipe.sources().is_err());
        fs::write(&pause, "one").unwrap();
        let first = recipe.sources().unwrap();
        assert_eq!(first, recipe.sources().unwrap());
        assert_eq!(first.lines().count(), 1);
        fs::write(&pause, "another").unwrap();
        assert_ne!(first, recipe.sources().unwrap());
    }
}
