//! What clients can call: SPDK's methods under their names, with their parameters, results and error texts, as far as
//! there is something here that they mean.
//!
//! A method is a function of the plane and its parameters. Those are a struct that refuses what it does not
//! know, by name, except where clients are known to send more.

mod bdev;
mod framework;
mod histogram;
mod iostat;
mod nvmf;
mod reply;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::jsonrpc::{self, RpcError};
use crate::plane::Plane;

/// What a method gives.
type Reply = Result<Value, RpcError>;
type Pending<'a> = Pin<Box<dyn Future<Output = Reply> + Send + 'a>>;
/// A method.
type Method = fn(Arc<Plane>, Value) -> Pending<'static>;

/// A method of a name, as an entry of the table.
macro_rules! methods {
    ($($name:literal => $function:path,)*) => {
        /// Every method, in the order of the names.
        const METHODS: &[(&str, Method)] =
            &[$(($name, |plane, params| Box::pin($function(plane, params)))),*];
    };
}

methods! {
    "bdev_aio_create" => bdev::aio_create,
    "bdev_aio_delete" => bdev::aio_delete,
    "bdev_enable_histogram" => histogram::enable_histogram,
    "bdev_get_bdevs" => bdev::get_bdevs,
    "bdev_get_histogram" => histogram::get_histogram,
    "bdev_get_iostat" => iostat::get_iostat,
    "bdev_malloc_create" => bdev::malloc_create,
    "bdev_malloc_delete" => bdev::malloc_delete,
    "bdev_null_create" => bdev::null_create,
    "bdev_null_delete" => bdev::null_delete,
    "bdev_reset_iostat" => iostat::reset_iostat,
    "bdev_uring_create" => bdev::uring_create,
    "bdev_uring_delete" => bdev::uring_delete,
    "bdev_wait_for_examine" => framework::done,
    "framework_start_init" => framework::done,
    "framework_wait_init" => framework::done,
    "nvmf_create_subsystem" => nvmf::subsystems::create_subsystem,
    "nvmf_create_transport" => nvmf::transports::create_transport,
    "nvmf_delete_subsystem" => nvmf::subsystems::delete_subsystem,
    "nvmf_get_subsystems" => nvmf::subsystems::get_subsystems,
    "nvmf_get_targets" => nvmf::transports::get_targets,
    "nvmf_get_transports" => nvmf::transports::get_transports,
    "nvmf_subsystem_add_host" => nvmf::hosts::add_host,
    "nvmf_subsystem_add_listener" => nvmf::listeners::add_listener,
    "nvmf_subsystem_add_ns" => nvmf::namespaces::add_namespace,
    "nvmf_subsystem_allow_any_host" => nvmf::hosts::allow_any_host,
    "nvmf_subsystem_get_listeners" => nvmf::listeners::get_listeners,
    "nvmf_subsystem_remove_host" => nvmf::hosts::remove_host,
    "nvmf_subsystem_remove_listener" => nvmf::listeners::remove_listener,
    "nvmf_subsystem_remove_ns" => nvmf::namespaces::remove_namespace,
    "rpc_get_methods" => framework::get_methods,
    "spdk_get_version" => framework::get_version,
}

/// The names of all methods, in order.
pub fn names() -> impl Iterator<Item = &'static str> {
    METHODS.iter().map(|(name, _)| *name)
}

/// The methods of a plane.
#[derive(Debug, Clone)]
pub struct Methods(Arc<Plane>);

impl Methods {
    /// Those that act on this plane.
    pub fn new(plane: Arc<Plane>) -> Self {
        Self(plane)
    }
}

impl jsonrpc::Methods for Methods {
    fn call<'a>(&'a self, method: &'a str, params: Value) -> Pending<'a> {
        let known = METHODS.binary_search_by(|(name, _)| name.cmp(&method));
        match known.ok().and_then(|at| METHODS.get(at)) {
            Some((_, function)) => function(Arc::clone(&self.0), params),
            None => Box::pin(async { Err(reply::unknown_method()) }),
        }
    }
}

/// A method's parameters; absent ones are an empty object.
fn parameters<T: DeserializeOwned>(params: Value) -> Result<T, RpcError> {
    let params = if params.is_null() { Value::Object(serde_json::Map::new()) } else { params };
    if !params.is_object() {
        return Err(reply::invalid("parameters are to be an object"));
    }
    serde_path_to_error::deserialize(params).map_err(|error| {
        let path = error.path().to_string();
        let problem = error.into_inner();
        // A parameter that is missing is named by the problem itself.
        if path == "." {
            reply::invalid(problem)
        } else {
            reply::invalid(format_args!("{path}: {problem}"))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order() {
        let names: Vec<_> = names().collect();
        assert!(names.is_sorted());
    }
}
