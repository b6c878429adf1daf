//! Where a subsystem can be reached, and how good each of these paths is.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::edit::Edit;
use super::super::reply::{internal, invalid};
use super::super::{Reply, parameters};
use super::subsystems::OneSubsystem;
use super::transports::trtype_of;
use super::{change_subsystem, check_target, find, nqn_of};
use crate::jsonrpc::RpcError;
use crate::objects::{Address, AnaState, AnaStates};
use crate::plane::Plane;

/// The port of a listener that names none.
const DEFAULT_PORT: u16 = 4420;
/// The parameter that names a listener.
const LISTEN_ADDRESS: &str = "listen_address";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListenAddress {
    trtype: String,
    adrfam: Option<String>,
    traddr: String,
    pub(super) trsvcid: Option<Port>,
}

/// A text, as SPDK has it, or a number, which is what it says.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Port {
    Number(u16),
    Text(String),
}

impl Port {
    fn number(&self, name: &str) -> Result<u16, RpcError> {
        let (number, text) = match self {
            Self::Number(number) => (Some(*number), number.to_string()),
            // Rust would take a sign, too.
            Self::Text(text) if !text.bytes().all(|it| it.is_ascii_digit()) => (None, text.clone()),
            Self::Text(text) => (text.parse().ok(), text.clone()),
        };
        let number = number.filter(|number| *number != 0);
        number.ok_or_else(|| invalid(format_args!("{name}.trsvcid: {text} is not a port")))
    }
}

impl ListenAddress {
    /// The address; `name` is that of the parameter.
    pub(super) fn parse(&self, name: &str) -> Result<Address, RpcError> {
        let trtype = trtype_of(&self.trtype)?;
        let traddr: IpAddr = self.traddr.parse().map_err(|_| {
            invalid(format_args!("{name}.traddr: {} is not an IP address", self.traddr))
        })?;
        let family = if traddr.is_ipv4() { "ipv4" } else { "ipv6" };
        if let Some(adrfam) = &self.adrfam
            && !adrfam.eq_ignore_ascii_case(family)
        {
            return Err(invalid(format_args!("{name}.adrfam: {traddr} is not {adrfam}")));
        }
        let trsvcid = self.trsvcid.as_ref().map_or(Ok(DEFAULT_PORT), |it| it.number(name))?;
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
    ana_state: Option<String>,
}

pub(in crate::methods) fn add_listener(params: Value) -> Result<Edit, RpcError> {
    let wanted: AddListener = parameters(params)?;
    check_target(wanted.tgt_name.as_deref())?;
    if wanted.secure_channel {
        return Err(invalid("secure_channel is not supported"));
    }
    let (nqn, address) = (nqn_of(&wanted.nqn)?, wanted.listen_address.parse(LISTEN_ADDRESS)?);
    let every = wanted.ana_state.as_deref().map_or(Ok(AnaState::default()), ana_state_of)?;
    Ok(Box::new(move |state| {
        let has_transport = state.transports.contains_key(&address.trtype);
        let subsystem = find(state, &nqn)?;
        if subsystem.listeners.contains_key(&address) {
            return Err(invalid("Listener already exists"));
        }
        if !has_transport {
            let trtype = address.trtype.as_str();
            return Err(invalid(format_args!(
                "Unable to find {trtype} transport. The transport must be created first"
            )));
        }
        let states = AnaStates { every, ..AnaStates::default() };
        subsystem.listeners.insert(address, states);
        Ok(Value::Bool(true))
    }))
}

fn ana_state_of(name: &str) -> Result<AnaState, RpcError> {
    AnaState::of_name(name).ok_or_else(|| {
        let names = AnaState::ALL.map(|(_, name)| name).join(", ");
        invalid(format_args!("ana_state: {name} is none of {names}"))
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetAnaState {
    nqn: String,
    tgt_name: Option<String>,
    listen_address: ListenAddress,
    ana_state: String,
    /// Zero is every group, as none is.
    #[serde(default)]
    anagrpid: u32,
}

pub(in crate::methods) fn set_ana_state(params: Value) -> Result<Edit, RpcError> {
    let wanted: SetAnaState = parameters(params)?;
    check_target(wanted.tgt_name.as_deref())?;
    let (nqn, address) = (nqn_of(&wanted.nqn)?, wanted.listen_address.parse(LISTEN_ADDRESS)?);
    let (state, group) = (ana_state_of(&wanted.ana_state)?, wanted.anagrpid);
    // What SPDK says is its own errno; what is wrong comes after it.
    let refuse = |what: &str| Err(internal(format_args!("error setting ANA state: -22: {what}")));
    change_subsystem(nqn, move |subsystem| {
        if !subsystem.ana_reporting {
            return refuse("the subsystem was created without ana_reporting");
        }
        if group > subsystem.max_namespaces {
            return refuse("anagrpid is above the highest NSID of the subsystem");
        }
        let Some(states) = subsystem.listeners.get_mut(&address) else {
            return refuse("listen_address: the subsystem does not listen there");
        };
        states.set((group != 0).then_some(group), state);
        Ok(Value::Bool(true))
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
    let (nqn, address) = (nqn_of(&wanted.nqn)?, wanted.listen_address.parse(LISTEN_ADDRESS)?);
    change_subsystem(nqn, move |subsystem| {
        if subsystem.listeners.remove(&address).is_some() {
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
        .map(|(address, states)| {
            let mut listener = Map::new();
            listener.insert("address".to_owned(), describe(address));
            if subsystem.ana_reporting {
                let groups = 1..=subsystem.max_namespaces;
                let state =
                    |group| json!({ "ana_group": group, "ana_state": states.of(group).name() });
                listener.insert("ana_states".to_owned(), groups.map(state).collect());
            }
            if unbound.contains(address) {
                listener.insert("tidegate_waiting".to_owned(), Value::Bool(true));
            }
            Value::Object(listener)
        })
        .collect())
}
