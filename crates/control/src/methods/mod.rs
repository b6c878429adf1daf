//! What clients can call: SPDK's methods under their names, with their parameters, results and error texts, as far as
//! there is something here that they mean.
//!
//! A method is a function of the plane and its parameters. Those are a struct that refuses what it does not
//! know, by name, except where clients are known to send more. One that only changes what is configured is
//! an `Edit`, made from the parameters alone: a configuration file holds many of them.

mod bdev;
mod bdev_nvme;
mod config;
mod edit;
mod faults;
mod framework;
mod histogram;
mod iostat;
mod log;
mod notify;
mod nvmf;
mod qos;
mod reply;
mod resize;
mod statistics;
mod threads;

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use self::config::objects;
use self::edit::Edit;
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
        /// Every method that is no edit, in the order of the names.
        const METHODS: &[(&str, Method)] =
            &[$(($name, |plane, params| Box::pin($function(plane, params)))),*];
    };
}

methods! {
    "bdev_aio_rescan" => resize::aio_rescan,
    "bdev_enable_histogram" => histogram::enable_histogram,
    "bdev_error_inject_error" => faults::inject_error,
    "bdev_error_resume_pending" => faults::resume_pending,
    "bdev_get_bdevs" => bdev::get_bdevs,
    "bdev_get_histogram" => histogram::get_histogram,
    "bdev_get_histogram_borders" => histogram::get_histogram_borders,
    "bdev_get_iostat" => iostat::get_iostat,
    "bdev_nvme_apply_firmware" => bdev_nvme::apply_firmware,
    "bdev_nvme_get_controller_health_info" => bdev_nvme::get_controller_health_info,
    "bdev_nvme_get_controllers" => bdev_nvme::get_controllers,
    "bdev_nvme_get_io_paths" => bdev_nvme::get_io_paths,
    "bdev_nvme_reset_controller" => bdev_nvme::reset_controller,
    "bdev_nvme_send_cmd" => bdev_nvme::send_cmd,
    "bdev_reset_iostat" => iostat::reset_iostat,
    "bdev_uring_rescan" => resize::uring_rescan,
    "framework_get_config" => config::framework_get_config,
    "framework_get_reactors" => threads::get_reactors,
    "framework_get_subsystems" => config::framework_get_subsystems,
    "framework_monitor_context_switch" => threads::monitor_context_switch,
    "load_config" => config::load_config,
    "load_subsystem_config" => config::load_subsystem_config,
    "log_clear_flag" => log::clear_flag,
    "log_get_flags" => log::get_flags,
    "log_get_level" => log::get_level,
    "log_get_print_level" => log::get_level,
    "log_set_flag" => log::set_flag,
    "log_set_level" => log::set_level,
    "log_set_print_level" => log::set_level,
    "notify_get_notifications" => notify::get_notifications,
    "notify_get_types" => notify::get_types,
    "nvmf_discovery_get_referrals" => nvmf::referrals::get_referrals,
    "nvmf_get_stats" => nvmf::connections::get_stats,
    "nvmf_get_subsystems" => nvmf::subsystems::get_subsystems,
    "nvmf_get_targets" => nvmf::transports::get_targets,
    "nvmf_get_transports" => nvmf::transports::get_transports,
    "nvmf_subsystem_get_controllers" => nvmf::connections::get_controllers,
    "nvmf_subsystem_get_listeners" => nvmf::listeners::get_listeners,
    "nvmf_subsystem_get_qpairs" => nvmf::connections::get_qpairs,
    "rpc_get_methods" => framework::get_methods,
    "save_config" => config::save_config,
    "save_subsystem_config" => config::save_subsystem_config,
    "spdk_get_version" => framework::get_version,
    "spdk_kill_instance" => framework::kill_instance,
    "thread_get_io_channels" => threads::get_io_channels,
    "thread_get_pollers" => threads::get_pollers,
    "thread_get_stats" => threads::get_stats,
    "tidegate_get_statistics" => statistics::get_statistics,
}

/// How a method's parameters become an edit.
type MakeEdit = fn(Value) -> Result<Edit, RpcError>;

/// Every method that changes what is configured, in the order of the names.
const EDITS: &[(&str, MakeEdit)] = &[
    ("bdev_aio_create", bdev::aio_create),
    ("bdev_aio_delete", bdev::aio_delete),
    ("bdev_delay_create", faults::delay_create),
    ("bdev_delay_delete", faults::delay_delete),
    ("bdev_delay_update_latency", faults::delay_update_latency),
    ("bdev_error_create", faults::error_create),
    ("bdev_error_delete", faults::error_delete),
    ("bdev_malloc_create", bdev::malloc_create),
    ("bdev_malloc_delete", bdev::malloc_delete),
    ("bdev_null_create", bdev::null_create),
    ("bdev_null_delete", bdev::null_delete),
    ("bdev_null_resize", resize::null_resize),
    ("bdev_nvme_attach_controller", bdev_nvme::attach_controller),
    ("bdev_nvme_detach_controller", bdev_nvme::detach_controller),
    ("bdev_nvme_set_options", bdev_nvme::set_options),
    ("bdev_set_qos_limit", qos::set_qos_limit),
    ("bdev_uring_create", bdev::uring_create),
    ("bdev_uring_delete", bdev::uring_delete),
    ("bdev_xnvme_create", bdev::xnvme_create),
    ("bdev_xnvme_delete", bdev::xnvme_delete),
    ("nvmf_create_subsystem", nvmf::subsystems::create_subsystem),
    ("nvmf_create_transport", nvmf::transports::create_transport),
    ("nvmf_delete_subsystem", nvmf::subsystems::delete_subsystem),
    ("nvmf_discovery_add_referral", nvmf::referrals::add_referral),
    ("nvmf_discovery_remove_referral", nvmf::referrals::remove_referral),
    ("nvmf_ns_add_host", nvmf::namespaces::add_host),
    ("nvmf_ns_remove_host", nvmf::namespaces::remove_host),
    ("nvmf_subsystem_add_host", nvmf::hosts::add_host),
    ("nvmf_subsystem_add_listener", nvmf::listeners::add_listener),
    ("nvmf_subsystem_add_ns", nvmf::namespaces::add_namespace),
    ("nvmf_subsystem_allow_any_host", nvmf::hosts::allow_any_host),
    ("nvmf_subsystem_listener_set_ana_state", nvmf::listeners::set_ana_state),
    ("nvmf_subsystem_remove_host", nvmf::hosts::remove_host),
    ("nvmf_subsystem_remove_listener", nvmf::listeners::remove_listener),
    ("nvmf_subsystem_remove_ns", nvmf::namespaces::remove_namespace),
    ("nvmf_subsystem_set_ns_ana_group", nvmf::namespaces::set_ana_group),
    ("tidegate_bdev_create", bdev::tidegate_create),
];

/// What SPDK has to be told and nothing here needs to know, with the reason. Files that SPDK wrote are full of it, so
/// it is accepted, whatever it says, and does nothing.
const IGNORED: &[(&str, &str)] = &[
    ("accel_set_options", "there is no acceleration framework"),
    ("bdev_examine", "nothing is found on devices"),
    ("bdev_iscsi_set_options", "there are no iSCSI devices"),
    (
        "bdev_nvme_set_hotplug",
        "NVMe controllers are attached by name, and found again by themselves",
    ),
    ("bdev_raid_set_options", "there are no RAID devices"),
    ("bdev_set_options", "pools are sized by [memory] of the configuration file"),
    ("bdev_wait_for_examine", "nothing is found on devices"),
    ("framework_set_scheduler", "queues are placed when hosts connect"),
    ("framework_start_init", "the node has started when it answers"),
    ("framework_wait_init", "the node has started when it answers"),
    ("fsdev_set_opts", "there are no file system devices"),
    ("iobuf_set_options", "pools are sized by [memory] of the configuration file"),
    ("iscsi_set_options", "there is no iSCSI target"),
    ("keyring_linux_set_options", "there are no keys"),
    ("log_enable_timestamps", "lines always say when"),
    ("nvmf_set_config", "there are no passthrough, poll group masks and authentication to set"),
    ("nvmf_set_crdt", "no command is refused for a while"),
    ("nvmf_set_max_subsystems", "subsystems take memory as they come"),
    ("scheduler_set_options", "queues are placed when hosts connect"),
    ("sock_impl_set_options", "sockets are tuned by [transports] of the configuration file"),
    ("sock_set_default_impl", "there is one implementation of sockets"),
];

/// The entry of this name in one of the tables.
fn find<T: Copy>(table: &[(&str, T)], method: &str) -> Option<T> {
    let at = table.binary_search_by(|(name, _)| (*name).cmp(method)).ok()?;
    table.get(at).map(|(_, entry)| *entry)
}

/// The names of all methods, in order.
pub fn names() -> impl Iterator<Item = &'static str> {
    let calls = METHODS.iter().map(|(name, _)| *name);
    let edits = EDITS.iter().map(|(name, _)| *name);
    let ignored = IGNORED.iter().map(|(name, _)| *name);
    calls.chain(edits).chain(ignored).collect::<BTreeSet<_>>().into_iter()
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
        if let Some(function) = find(METHODS, method) {
            return function(Arc::clone(&self.0), params);
        }
        if let Some(make) = find(EDITS, method) {
            return Box::pin(edit::apply_one(&self.0, make(params)));
        }
        let ignored = find(IGNORED, method);
        Box::pin(
            async move { ignored.map(|_| Value::Bool(true)).ok_or_else(reply::unknown_method) },
        )
    }
}

/// The parameters of a method that has none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

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
    fn the_tables_are_in_order_and_share_no_name() {
        assert!(METHODS.is_sorted_by_key(|(name, _)| name));
        assert!(EDITS.is_sorted_by_key(|(name, _)| name));
        assert!(IGNORED.is_sorted_by_key(|(name, _)| name));
        assert_eq!(names().count(), METHODS.len() + EDITS.len() + IGNORED.len());
    }
}
