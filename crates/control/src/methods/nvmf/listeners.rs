//! Where a subsystem can be reached.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::super::edit::Edit;
use super::super::reply::invalid;
use super::super::{Reply, parameters};
use super::subsystems::OneSubsystem;
use super::transports::trtype_of;
use super::{change_subsystem, check_target, nqn_of};
use crate::jsonrpc::RpcError;
use crate::objects::Address;
use crate::plane::Plane;

/// The port of a listener that names none.
const DEFAULT_PORT: u16 = 4420;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListenAddress {
    trtype: String,
    adrfam: Option<String>,
    traddr: String,
    trsvcid: Option<Port>,
}

/// A text, as SPDK has it, or a number, which is what it says.
#[derive(Deserialize)]
#[serde(untagged)]
enum Port {
    Number(u16),
    Text(String),
}

impl Port {
    fn number(&self) -> Result<u16, RpcError> {
        let (number, text) = match self {
            Self::Number(number) => (Some(*number), number.to_string()),
            // Rust would take a sign, too.
            Self::Text(text) if !text.bytes().all(|it| it.is_ascii_digit()) => (None, text.clone()),
            Self::Text(text) => (text.parse().ok(), text.clone()),
        };
        let number = number.filter(|number| *number != 0);
        number.ok_or_else(|| invalid(format_args!("listen_address.trsvcid: {text} is not a port")))
    }
}

impl ListenAddress {
    fn parse(&self) -> Result<Address, RpcError> {
        let trtype = trtype_of(&self.trtype)?;
        let traddr: IpAddr = self.traddr.parse().map_err(|_| {
            invalid(format_args!("listen_address.traddr: {} is not an IP address", self.traddr))
        })?;
        let family = if traddr.is_ipv4() { "ipv4" } else { "ipv6" };
        if let Some(adrfam) = &self.adrfam
            && !adrfam.eq_ignore_ascii_case(family)
        {
            return Err(invalid(format_args!("listen_address.adrfam: {traddr} is not {adrfam}")));
        }
        let trsvcid = self.trsvcid.as_ref().map_or(Ok(DEFAULT_PORT), Port::number)?;
        Ok(Address { trtype, traddr, trsvcid })
    }
}

/// An address as SPDK's clients read it.
pub(in crate::methods) fn describe(address: &Address) -> Value {
    json!({
        "trtype": address.trtype.as_str(),
        "adrfam": if address.traddr.is_ipv4() { "IPv4" } else { "IPv6" },
        "traddr": address.traddr,
        "trsvcid": address.trsvcid.to_string(),
    })
}

/// Relaxed, as in SPDK: newer clients send more.
#[derive(Deserialize)]
struct AddListener {
    nqn: String,
    tgt_name: Option<String>,
    listen_address: ListenAddress,
    #[serde(default)]
    secure_channel: bool,
}

pub(in crate::methods) fn add_listener(params: Value) -> Result<Edit, RpcError> {
    let wanted: AddListener = parameters(params)?;
    check_target(wanted.tgt_name.as_deref())?;
    if wanted.secure_channel {
        return Err(invalid("secure_channel is not supported"));
    }
    let (nqn, address) = (nqn_of(&wanted.nqn)?, wanted.listen_address.parse()?);
    change_subsystem(nqn, move |subsystem| {
        if subsystem.listeners.insert(address) {
            Ok(Value::Bool(true))
        } else {
            Err(invalid("Listener already exists"))
        }
    })
}

/// Clients of older versions send `secure_channel` here, too; it changes nothing.
#[derive(Deserialize)]
struct RemoveListener {
    nqn: String,
    tgt_name: Option<String>,
    listen_address: ListenAddress,
}

pub(in crate::methods) fn remove_listener(params: Value) -> Result<Edit, RpcError> {
    let wanted: RemoveListener = parameters(params)?;
    check_target(wanted.tgt_name.as_deref())?;
    let (nqn, address) = (nqn_of(&wanted.nqn)?, wanted.listen_address.parse()?);
    change_subsystem(nqn, move |subsystem| {
        if subsystem.listeners.remove(&address) {
            Ok(Value::Bool(true))
        } else {
            Err(invalid("listen_address: the subsystem does not listen there"))
        }
    })
}

pub(in crate::methods) async fn get_listeners(plane: Arc<Plane>, params: Value) -> Reply {
    let wanted: OneSubsystem = parameters(params)?;
    check_target(wanted.tgt_name.as_deref())?;
    let nqn = nqn_of(&wanted.nqn)?;
    let state = plane.state();
    let subsystem = state.subsystems.get(&nqn);
    let subsystem =
        subsystem.ok_or_else(|| invalid(format_args!("there is no subsystem {nqn}")))?;
    let unbound = plane.unbound();
    Ok(subsystem
        .listeners
        .iter()
        .map(|address| {
            let groups = json!([{ "ana_group": 1, "ana_state": "optimized" }]);
            let mut listener = json!({ "address": describe(address), "ana_states": groups });
            if let Some(listener) = listener.as_object_mut()
                && unbound.contains(address)
            {
                listener.insert("tidegate_waiting".to_owned(), Value::Bool(true));
            }
            listener
        })
        .collect())
}
