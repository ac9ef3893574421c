//! chatrpc from Rust: the stubs of its contract, a client that is set up for chats, and the details of errors.

mod client;
mod error;

pub use client::{ChatClient, Chunks, Tls};
pub use error::ChatError;

/// The messages of `protos/chatrpc/v1`, as build.rs generates them.
pub mod v1 {
    tonic::include_proto!("chatrpc.v1");
}
