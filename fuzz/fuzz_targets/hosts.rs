//! hosts.toml, and what a registry says of tokens.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podway_runtime::image::hosts::parse;
use std::path::Path;

fuzz_target!(|text: &str| {
    if let Ok(endpoints) = parse(Path::new("/c/hosts.toml"), text, "registry.example") {
        assert!(!endpoints.is_empty(), "the registry itself is always there");
        for endpoint in endpoints {
            assert!(!endpoint.authority.is_empty() && !endpoint.authority.contains('@'));
        }
    }
});
