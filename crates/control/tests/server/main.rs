//! The server as its clients see it: streams, sockets, HTTP, and clients that misbehave.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(missing_docs)]

mod corpus;
mod crowd;
mod http;
mod probe;
mod sockets;
mod stream;
