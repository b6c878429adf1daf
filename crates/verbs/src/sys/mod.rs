//! The part of the C interface of libibverbs and librdmacm that this crate uses, and nothing more.
//!
//! Written by hand: nothing has to be generated, and no header or library is needed to build. `tests/layout.rs` holds each
//! size and offset against the system's own headers where a C compiler has them. Structures that only the library allocates
//! are declared up to the last field that is read here; they exist behind pointers alone.

mod address;
mod api;
mod thread;
mod types;

pub(crate) use address::{decode, encode};
pub(crate) use api::{Api, open};
pub use thread::*;
pub use types::*;
