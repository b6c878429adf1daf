//! The control plane: what programs tell the node to serve, kept so that it is never lost.
//!
//! ```text
//!   Unix socket, TCP, HTTP --> server --> jsonrpc --> methods --> plane --> store (on disk)
//!                                                                   +-----> node (reactors)
//! ```
//!
//! tokio lives here and nowhere below; nothing here runs on a reactor. A method validates, prepares what may
//! block (open, bind) on threads that may block, commits the change to disk, publishes it to every reactor,
//! and answers when all of them have acknowledged: what a client was told has been done is on disk.

mod context_switches;
pub mod controllers;
pub mod jsonrpc;
pub mod layers;
pub mod logs;
pub mod methods;
pub mod notifications;
pub mod objects;
pub mod pages;
pub mod plane;
pub mod server;
pub mod state;
pub mod statistics;
pub mod store;
pub mod transports;
pub mod waiting;
