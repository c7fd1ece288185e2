//! Generates clients and servers from `proto/api.proto` (CRI v1), `proto/podway.proto`, and the APIs of a kubelet's
//! plugins, with protox: no `protoc` is needed.
use prost::Message as _;
use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    const FILES: [&str; 5] = [
        "proto/api.proto",
        "proto/podway.proto",
        "proto/deviceplugin.proto",
        "proto/pluginregistration.proto",
        "proto/csi.proto",
    ];
    // They carry secrets: nobody can print them.
    const SECRET: [&str; 2] = ["csi.v1.NodeStageVolumeRequest", "csi.v1.NodePublishVolumeRequest"];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let path = PathBuf::from(env::var("OUT_DIR")?).join("cri.bin");
    fs::write(&path, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .skip_debug(SECRET)
        .file_descriptor_set_path(&path)
        .skip_protoc_run()
        .compile_protos(&FILES, &["proto"])?;
    Ok(())
}
