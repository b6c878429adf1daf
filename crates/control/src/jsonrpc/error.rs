//! Errors as a client sees them: a code that programs compare, a text that people read (and some programs, too).

use std::borrow::Cow;
use std::fmt;

/// The `error` of a response.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, thiserror::Error)]
#[error("{message} ({code})")]
pub struct RpcError {
    /// One of JSON-RPC's codes, or a negative errno.
    pub code: i64,
    /// What was wrong. Clients search some of these texts: the contract is SPDK's wording, then a colon, then the detail.
    pub message: String,
}

impl RpcError {
    /// The bytes are not JSON, or more of it than is taken. Ends the connection.
    pub const PARSE_ERROR: i64 = -32700;
    /// JSON, but not a request.
    pub const INVALID_REQUEST: i64 = -32600;
    /// There is no such method.
    pub const METHOD_NOT_FOUND: i64 = -32601;
    /// The method does not take these parameters.
    pub const INVALID_PARAMS: i64 = -32602;
    /// The method failed.
    pub const INTERNAL_ERROR: i64 = -32603;

    /// An error with a code and a text.
    pub fn new<'a>(code: i64, message: impl Into<Cow<'a, str>>) -> RpcError {
        RpcError { code, message: message.into().into_owned() }
    }

    /// The bytes are not JSON, or more of it than is taken.
    pub fn parse_error(detail: impl fmt::Display) -> RpcError {
        RpcError::new(RpcError::PARSE_ERROR, format!("Parse error: {detail}"))
    }

    /// JSON, but not a request.
    pub fn invalid_request(detail: impl fmt::Display) -> RpcError {
        RpcError::new(RpcError::INVALID_REQUEST, format!("Invalid request: {detail}"))
    }

    /// There is no such method.
    pub fn method_not_found() -> RpcError {
        RpcError::new(RpcError::METHOD_NOT_FOUND, "Method not found")
    }

    /// The method does not take these parameters, in SPDK's words alone.
    pub fn invalid_params() -> RpcError {
        RpcError::new(RpcError::INVALID_PARAMS, "Invalid parameters")
    }

    /// The method does not take these parameters, and why.
    pub fn invalid_params_because(detail: impl fmt::Display) -> RpcError {
        RpcError::new(RpcError::INVALID_PARAMS, format!("Invalid parameters: {detail}"))
    }

    /// The method failed, for this reason and no other words.
    pub fn internal<'a>(message: impl Into<Cow<'a, str>>) -> RpcError {
        RpcError::new(RpcError::INTERNAL_ERROR, message)
    }

    /// The method failed as a system call fails; `errno` is positive, as in `ENODEV`.
    pub fn errno<'a>(errno: i32, message: impl Into<Cow<'a, str>>) -> RpcError {
        RpcError::new(-i64::from(errno), message)
    }
}
