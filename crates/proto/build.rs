//! Generates the wire types from `proto/`, without a system protoc.

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto");
    let files =
        ["common", "control", "agent", "worker", "checkpoint"].map(|name| format!("himpun/v1/{name}.proto"));
    let descriptors = protox::compile(&files, [root])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    std::fs::write(out.join("method.rs"), methods(&descriptors))?;
    tonic_prost_build::configure()
        .bytes(".himpun.v1.Chunk")
        // They hold secrets: `secrets.rs` says what of them is shown.
        .skip_debug(["AgentHello", "WorkerAssignment", "Assign"].map(|name| format!(".himpun.v1.{name}")))
        .compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed={root}");
    Ok(())
}

/// The enum of all methods: who matches on it and forgets one does not compile.
fn methods(descriptors: &prost_types::FileDescriptorSet) -> String {
    let mut found = Vec::new();
    for file in &descriptors.file {
        for service in &file.service {
            let short = service.name().trim_end_matches("Service");
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                found.push((format!("{short}{}", method.name()), path));
            }
        }
    }
    let variants: String = found.iter().map(|(name, path)| format!("/// `{path}`.\n{name},\n")).collect();
    let all: String = found.iter().map(|(name, _)| format!("Method::{name}, ")).collect();
    let arms: String = found.iter().map(|(name, path)| format!("Method::{name} => \"{path}\",\n")).collect();
    format!(
        "/// Every method of every service of `himpun.v1`.\n\
         #[derive(Clone, Copy, Debug, PartialEq, Eq)]\n\
         pub enum Method {{\n{variants}}}\n\
         impl Method {{\n\
             /// All of them.\n\
             pub const ALL: [Method; {n}] = [{all}];\n\
             /// As a request names it.\n\
             pub fn path(self) -> &'static str {{ match self {{ {arms} }} }}\n\
         }}\n",
        n = found.len(),
    )
}
