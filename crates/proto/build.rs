//! Generates the wire types from `proto/`, without a system protoc.

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto");
    let files =
        ["common", "control", "agent", "worker", "checkpoint"].map(|name| format!("himpun/v1/{name}.proto"));
    let descriptors = protox::compile(&files, [root])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(out, descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".himpun.v1.Chunk").compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed={root}");
    Ok(())
}
