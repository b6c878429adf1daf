//! How much a device may do per second.
//!
//! Rates are kept as they were asked for: SPDK rounds I/Os up to thousands. What it has no name for, I/Os of one way, is
//! a parameter more of the same method.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::edit::Edit;
use super::parameters;
use super::reply::Errno;
use crate::jsonrpc::RpcError;
use crate::objects::RateLimits;
use crate::state::Opened;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetQosLimit {
    name: String,
    rw_ios_per_sec: Option<u64>,
    r_ios_per_sec: Option<u64>,
    w_ios_per_sec: Option<u64>,
    rw_mbytes_per_sec: Option<u64>,
    r_mbytes_per_sec: Option<u64>,
    w_mbytes_per_sec: Option<u64>,
}

impl SetQosLimit {
    /// What is not named stays as it is.
    fn change(&self, limits: &mut RateLimits) -> bool {
        let mut named = false;
        for (wanted, limit) in [
            (self.rw_ios_per_sec, &mut limits.rw_ios_per_sec),
            (self.r_ios_per_sec, &mut limits.r_ios_per_sec),
            (self.w_ios_per_sec, &mut limits.w_ios_per_sec),
            (self.rw_mbytes_per_sec, &mut limits.rw_mbytes_per_sec),
            (self.r_mbytes_per_sec, &mut limits.r_mbytes_per_sec),
            (self.w_mbytes_per_sec, &mut limits.w_mbytes_per_sec),
        ] {
            if let Some(wanted) = wanted {
                *limit = wanted;
                named = true;
            }
        }
        named
    }
}

pub(super) fn set_qos_limit(params: Value) -> Result<Edit, RpcError> {
    let wanted: SetQosLimit = parameters(params)?;
    Ok(Box::new(move |state| {
        let missing = || Errno::NoDevice.about(&wanted.name);
        let opened = state.device(&wanted.name).ok_or_else(missing)?;
        let mut changed = Opened::clone(opened);
        if !wanted.change(&mut changed.object.limits) {
            return Err(Errno::Invalid.about("No rate limits specified"));
        }
        state.devices.insert(changed.object.name.clone(), Arc::new(changed));
        Ok(Value::Bool(true))
    }))
}

fn words<const N: usize>(limits: [(&str, u64); N]) -> Map<String, Value> {
    limits.into_iter().map(|(name, limit)| (name.to_owned(), limit.into())).collect()
}

/// The limits that SPDK has.
pub(super) fn in_words_of_spdk(limits: &RateLimits) -> Map<String, Value> {
    words([
        ("rw_ios_per_sec", limits.rw_ios_per_sec),
        ("rw_mbytes_per_sec", limits.rw_mbytes_per_sec),
        ("r_mbytes_per_sec", limits.r_mbytes_per_sec),
        ("w_mbytes_per_sec", limits.w_mbytes_per_sec),
    ])
}

/// Those that it has not.
pub(super) fn in_words_of_ours(limits: &RateLimits) -> Map<String, Value> {
    words([("r_ios_per_sec", limits.r_ios_per_sec), ("w_ios_per_sec", limits.w_ios_per_sec)])
}

/// As `bdev_get_bdevs` shows them: SPDK's always, ours where there are any.
pub(super) fn assigned(limits: &RateLimits) -> Value {
    let mut assigned = in_words_of_ours(limits);
    assigned.retain(|_, limit| *limit != 0);
    assigned.extend(in_words_of_spdk(limits));
    assigned.into()
}
