use std::error::Error;

const PROTOS: &str = "../../protos";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTOS}/chatrpc");
    let files = [
        "chatrpc/v1/chat_service.proto",
        "chatrpc/v1/chat_error.proto",
    ];
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(protox::compile(files, [PROTOS])?)?;
    Ok(())
}
