//! The connection manager's protocol: messages between identifiers, one delivered per step.

use std::net::SocketAddr;

use super::world::{CmMessage, Stage, World};
use crate::event::REJECTED_NOBODY_LISTENS;
use crate::sys;

impl World {
    /// Puts a message on its way to an identifier.
    pub(crate) fn send_message(&mut self, to: u32, message: CmMessage) {
        if let Some(identifier) = self.identifiers.get_mut(&to) {
            identifier.inbox.push_back(message);
            self.busy_identifiers.add(to);
        }
    }

    /// The next message of an identifier's arrives.
    pub(crate) fn deliver_message(&mut self, number: u32) {
        let Some(identifier) = self.identifiers.get_mut(&number) else { return };
        let Some(message) = identifier.inbox.pop_front() else { return };
        match message.kind {
            sys::CM_EVENT_ADDR_RESOLVED => {
                identifier.stage = Stage::Resolved;
                (identifier.device, identifier.local) = (Some(message.device), message.local);
            }
            sys::CM_EVENT_CONNECT_RESPONSE => {
                identifier.stage = Stage::Responded;
                identifier.peer = Some(message.from);
                identifier.peer_qp = message.qp_num;
                identifier.rnr_retries = message.rnr_retries;
                let least = |own: u8, other: u8| own.min(other);
                identifier.responder_resources =
                    least(identifier.responder_resources, message.responder_resources);
                identifier.initiator_depth =
                    least(identifier.initiator_depth, message.initiator_depth);
            }
            sys::CM_EVENT_ESTABLISHED => identifier.stage = Stage::Connected,
            sys::CM_EVENT_REJECTED | sys::CM_EVENT_UNREACHABLE | sys::CM_EVENT_DISCONNECTED => {
                identifier.stage = Stage::Over;
            }
            _ => {}
        }
        let channel = identifier.channel;
        if let Some(channel) = self.channels.get_mut(&channel) {
            channel.push((number, message));
        }
    }

    /// The device that has this address, or any for the unspecified one.
    pub(crate) fn device_at(&self, address: SocketAddr) -> Option<usize> {
        let there = |state: &super::DeviceState| !state.removed;
        let ip = address.ip();
        self.devices.iter().position(|state| {
            there(state) && (ip.is_unspecified() || state.options.addresses.contains(&ip))
        })
    }

    /// Who listens at this address, most closely.
    fn listener(&self, at: SocketAddr) -> Option<u32> {
        let listens = |exact: bool| {
            self.identifiers.iter().find(|(_, identifier)| {
                let local = identifier.local.filter(|_| identifier.stage == Stage::Listening);
                local.is_some_and(|local| {
                    let same =
                        if exact { local.ip() == at.ip() } else { local.ip().is_unspecified() };
                    same && local.port() == at.port() && local.is_ipv4() == at.is_ipv4()
                })
            })
        };
        listens(true).or_else(|| listens(false)).map(|(&number, _)| number)
    }

    /// Asks for a connection.
    pub(crate) fn request(&mut self, number: u32, message: CmMessage) -> Result<(), i32> {
        let Some(identifier) = self.identifiers.get_mut(&number) else { return Err(libc::EINVAL) };
        let (Stage::Resolved, Some(device), Some(remote)) =
            (identifier.stage, identifier.device, identifier.remote)
        else {
            return Err(libc::EINVAL);
        };
        identifier.stage = Stage::Connecting;
        identifier.responder_resources = message.responder_resources;
        identifier.initiator_depth = message.initiator_depth;
        identifier.retries = message.retries;
        let local = identifier.local;
        if self.requests_lost > 0 {
            self.requests_lost -= 1;
            let lost = CmMessage::new(sys::CM_EVENT_UNREACHABLE, -libc::ETIMEDOUT);
            self.send_message(number, lost);
            return Ok(());
        }
        if let Some(reason) = self.requests_refused.pop_front() {
            self.send_message(number, CmMessage::new(sys::CM_EVENT_REJECTED, reason));
            return Ok(());
        }
        let target = self.device_at(remote).filter(|&target| {
            let up = |index: usize| self.devices.get(index).is_some_and(|state| state.port_up);
            up(target) && up(device)
        });
        match (target, self.listener(remote)) {
            (Some(device), Some(listener)) => {
                // What one end sends, the other answers.
                let request = CmMessage {
                    responder_resources: message.initiator_depth,
                    initiator_depth: message.responder_resources,
                    from: number,
                    device,
                    local: Some(remote),
                    remote: local,
                    ..message
                };
                self.send_message(listener, request);
            }
            (None, _) => {
                let lost = CmMessage::new(sys::CM_EVENT_UNREACHABLE, -libc::ETIMEDOUT);
                self.send_message(number, lost);
            }
            (_, None) => {
                let refused = CmMessage::new(sys::CM_EVENT_REJECTED, REJECTED_NOBODY_LISTENS);
                self.send_message(number, refused);
            }
        }
        Ok(())
    }

    /// Tells the peer of an identifier what became of it.
    pub(crate) fn tell_peer(&mut self, number: u32, message: CmMessage) {
        let peer = self.identifiers.get(&number).and_then(|identifier| identifier.peer);
        if let Some(peer) = peer {
            self.send_message(peer, message);
        }
    }

    /// An identifier is destroyed: its peer learns of it, and so does everybody who asked it and was not answered.
    pub(crate) fn drop_identifier(&mut self, number: u32) {
        let Some(identifier) = self.identifiers.remove(&number) else { return };
        for message in identifier.inbox {
            self.refuse_unseen(&message);
        }
        if let Some(channel) = self.channels.get_mut(&identifier.channel) {
            let mut unseen = Vec::new();
            channel.retain(|(to, message)| {
                if *to == number {
                    unseen.push(message.clone());
                }
                *to != number
            });
            for message in &unseen {
                self.refuse_unseen(message);
            }
        }
        let (kind, status) = match identifier.stage {
            Stage::Asked => (sys::CM_EVENT_REJECTED, crate::event::REJECTED_BY_CONSUMER),
            Stage::Responded | Stage::Connecting => {
                (sys::CM_EVENT_CONNECT_ERROR, -libc::ECONNRESET)
            }
            Stage::Accepted | Stage::Connected => (sys::CM_EVENT_DISCONNECTED, 0),
            _ => return,
        };
        if let Some(peer) = identifier.peer {
            self.send_message(peer, CmMessage::new(kind, status));
        }
    }

    fn refuse_unseen(&mut self, message: &CmMessage) {
        if message.kind == sys::CM_EVENT_CONNECT_REQUEST {
            let refused = CmMessage::new(sys::CM_EVENT_REJECTED, REJECTED_NOBODY_LISTENS);
            self.send_message(message.from, refused);
        }
    }

    /// A device is gone: everybody on it is told.
    pub(crate) fn remove_from_identifiers(&mut self, device: usize) {
        for (&number, identifier) in &mut self.identifiers {
            if identifier.device == Some(device) {
                identifier.inbox.push_back(CmMessage::new(sys::CM_EVENT_DEVICE_REMOVAL, 0));
                self.busy_identifiers.add(number);
            }
        }
    }
}
