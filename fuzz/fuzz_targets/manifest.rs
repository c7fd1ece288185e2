//! A manifest, an index, a configuration: read into narrow types or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podway_runtime::image::ImageRef;
use podway_runtime::image::registry::{Manifest, Platform, parse_config, parse_manifest};

fuzz_target!(|body: &[u8]| {
    let types = [None, Some("application/vnd.oci.image.index.v1+json")];
    for kind in types {
        if let Ok(Manifest::Image { layers, .. }) = parse_manifest(body, kind, &Platform::host()) {
            assert!(layers.len() <= 500);
        }
    }
    if let Ok((config, diff_ids)) = parse_config(body, 1) {
        assert_eq!(diff_ids.len(), 1);
        assert!(!config.working_dir.contains('\0') && !config.user.contains('\n'));
    }
    if let Ok(text) = std::str::from_utf8(body)
        && let Ok(reference) = ImageRef::parse(text)
    {
        let again = ImageRef::parse(&reference.to_string()).expect("what it shows can be read again");
        assert_eq!(again, reference);
    }
});
