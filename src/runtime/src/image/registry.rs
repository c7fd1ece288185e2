//! The distribution v2 protocol, pulling only: manifests whole and capped, blobs as streams.
//!
//! Credentials go to the endpoint they are for and to the token realm it names, never along a
//! redirect to another host; nothing that began on https goes on over http.

mod auth;
mod client;
mod manifest;

pub use auth::{Credentials, CredentialsError};
pub use client::{Blob, Registry, RegistryError};
pub use manifest::{
    ImageConfig, LayerDescriptor, Manifest, ManifestError, Platform, parse_config, parse_manifest,
};
