//! JSON-RPC 2.0 as SPDK's clients speak it: what stands in the bytes, and what is written in return.
//!
//! ```text
//!   bytes --Splitter--> one JSON text --Message::parse--> requests --Methods::call--> responses --> bytes
//! ```
//!
//! Pure data apart from [`Message::answer`], which awaits the methods. Knows no socket; `server` owns those.
//!
//! Like SPDK: `jsonrpc` may be absent, `"params": null` means none, an unknown key beside `method` and its like
//! is refused (a misspelt `params` would otherwise be a call with none), and no position in a stream is to be
//! trusted behind bytes that are not JSON. Unlike SPDK: the requests of a batch are carried out one after the
//! other, so that a batch may create something and then use it.
//!
//! Rejected: `serde_json`'s `raw_value`, to keep an id as it was sent. It gives a magic key in any object
//! the power to have a string parsed as JSON, which is nesting that no limit sees.

mod error;
mod message;
mod plain;
mod splitter;

use std::pin::Pin;

use serde_json::Value;

pub use error::RpcError;
pub use message::{Call, Id, Message, Request};
pub use splitter::{SplitError, Splitter};

/// A method under way.
pub type Calling<'a> = Pin<Box<dyn Future<Output = Result<Value, RpcError>> + Send + 'a>>;

/// The place in which answers wait to be taken.
pub trait Room: Send {
    /// Whether no further call is to be begun for it.
    fn is_full(&self) -> bool;

    /// Takes room for an answer of so many bytes, if there is.
    fn take(&mut self, bytes: usize) -> bool;
}

/// What can be called. Many calls run at the same time; what is begun is never cancelled. A method does not block its
/// thread, which other calls need: what may block belongs on a thread for that.
pub trait Methods: Send + Sync + 'static {
    /// Calls `method`. `params` is an object, an array, or null where there are none.
    fn call<'a>(&'a self, method: &'a str, params: Value) -> Calling<'a>;
}
