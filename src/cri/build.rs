//! Generates the CRI v1 client and server from `proto/api.proto` with protox: no `protoc` is needed.
use prost::Message as _;
use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/api.proto");
    let descriptors = protox::compile(["proto/api.proto"], ["proto"])?;
    let path = PathBuf::from(env::var("OUT_DIR")?).join("cri.bin");
    fs::write(&path, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .file_descriptor_set_path(&path)
        .skip_protoc_run()
        .compile_protos(&["proto/api.proto"], &["proto"])?;
    Ok(())
}
