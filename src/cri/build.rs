//! Generates clients and servers from `proto/api.proto` (CRI v1), `proto/podway.proto` and
//! `proto/deviceplugin.proto` with protox: no `protoc` is needed.
use prost::Message as _;
use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    const FILES: [&str; 3] = ["proto/api.proto", "proto/podway.proto", "proto/deviceplugin.proto"];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let path = PathBuf::from(env::var("OUT_DIR")?).join("cri.bin");
    fs::write(&path, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .file_descriptor_set_path(&path)
        .skip_protoc_run()
        .compile_protos(&FILES, &["proto"])?;
    Ok(())
}
