//! The discovery log (70h): what a host is told of the ways to reach the subsystems that it may use.
//!
//! A [`DiscoveryLog`] is a view of a configuration for one host on one connection, not a copy: entries are made
//! as they are asked for. Two reads of the same snapshot say the same in the same order, so that a host
//! may read the log in pages; a change between two pages shows in the generation counter, which hosts compare
//! before and after.
//!
//! * A subsystem whose allow-list lacks the host is not mentioned at all.
//! * A wildcard listener is named by the address that the host connected to, since the wildcard itself is no
//!   address to connect to. One of the other address family cannot be named so, and is left out.
//! * A listener on a loopback address is shown only to those who came by a loopback address.
//! * The discovery subsystem itself comes first, once for each listener, as the current one.
//! * Referrals come last, for every host alike, as they were configured: what is there is for others to know.

use std::net::IpAddr;

use nvme::address::{TransportAddress, TransportType};
use nvme::log::{
    DISCOVERY_RECFMT, DiscoveryEntry, DiscoveryFlags, DiscoveryHeader, RdmaAddressSubtype,
    SecureChannel, SubsystemType, TcpAddressSubtype, TransportRequirements,
};
use nvme::nqn::DISCOVERY_NQN;
use nvme::{Nqn, U16, U64};
use zerocopy::{FromZeros, IntoBytes};

use crate::configuration::{Configuration, Limits, Listener, Referral};
use crate::log_page::Window;

/// Controller ID of an entry: the dynamic controller model.
const CONTROLLER_DYNAMIC: u16 = 0xffff;

/// Entries of an admin queue that every subsystem takes.
const ADMIN_ENTRIES: u16 = 32;

/// SECTYPE of TCP: TLS 1.3.
const SECURITY_TLS: u8 = 2;

const HEADER_BYTES: u64 = size_of::<DiscoveryHeader>() as u64;
const ENTRY_BYTES: u64 = size_of::<DiscoveryEntry>() as u64;

/// The discovery log of one configuration for one host.
#[derive(Clone, Copy, Debug)]
pub struct DiscoveryLog<'a> {
    configuration: &'a Configuration,
    host: &'a Nqn,
    local: IpAddr,
}

/// One entry, before it is put in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry<'a> {
    what: What<'a>,
    /// Port ID (PORTID): the listener, 0 on another node.
    port: u16,
    address: TransportAddress,
    queue_depth: u16,
}

/// What an entry leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What<'a> {
    /// The discovery subsystem that is asked.
    Current,
    /// A subsystem of this node.
    Subsystem(&'a Nqn),
    /// Something elsewhere.
    Referral(&'a Referral),
}

impl<'a> DiscoveryLog<'a> {
    /// The log for `host`, which connected to the address `local`.
    pub fn new(configuration: &'a Configuration, host: &'a Nqn, local: IpAddr) -> Self {
        Self { configuration, host, local: local.to_canonical() }
    }

    /// Bytes of the whole log.
    pub fn length(&self) -> u64 {
        HEADER_BYTES + self.records() * ENTRY_BYTES
    }

    /// Whether the host would read the same entries in `other`: if not, it wants to be notified.
    pub fn same_entries(&self, other: &DiscoveryLog<'_>) -> bool {
        self.entries().eq(other.entries())
    }

    fn records(&self) -> u64 {
        self.entries().count() as u64
    }

    /// Fills the part of the log that the window shows.
    pub(crate) fn write(&self, window: &mut Window<'_>) {
        if window.start() < HEADER_BYTES {
            let header = DiscoveryHeader {
                genctr: U64::new(self.configuration.discovery_generation()),
                numrec: U64::new(self.records()),
                recfmt: U16::new(DISCOVERY_RECFMT),
                ..DiscoveryHeader::default()
            };
            window.put(0, header.as_bytes());
        }
        let positions = (HEADER_BYTES..window.end()).step_by(size_of::<DiscoveryEntry>());
        for (position, entry) in positions.zip(self.entries()) {
            if position + ENTRY_BYTES > window.start() {
                window.put(position, entry.encode().as_bytes());
            }
        }
    }

    /// Everything that the host may use, in a fixed order.
    fn entries(&self) -> impl Iterator<Item = Entry<'a>> {
        let Self { configuration, host, local } = *self;
        let listeners = move || {
            let listeners = configuration.listeners().iter();
            listeners.filter_map(move |listener| Some((listener.id, seen_from(local, listener)?)))
        };
        let discovery = listeners().map(|(listener, address)| Entry {
            what: What::Current,
            port: listener.0,
            address,
            queue_depth: Limits::default().queue_depth,
        });
        let subsystems = configuration.subsystems().iter();
        let subsystems = subsystems.filter(move |subsystem| subsystem.allows(host));
        let nvm = subsystems.flat_map(move |subsystem| {
            let reachable =
                listeners().filter(|(listener, _)| subsystem.is_reachable_on(*listener));
            reachable.map(|(listener, address)| Entry {
                what: What::Subsystem(subsystem.nqn()),
                port: listener.0,
                address,
                queue_depth: subsystem.limits().queue_depth,
            })
        });
        let referrals = configuration.referrals().iter().map(|referral| Entry {
            what: What::Referral(referral),
            port: 0,
            address: referral.address,
            queue_depth: ADMIN_ENTRIES,
        });
        discovery.chain(nvm).chain(referrals)
    }
}

/// The address by which a host that connected to `local` can use this listener, if it can.
fn seen_from(local: IpAddr, listener: &Listener) -> Option<TransportAddress> {
    let address = listener.address;
    let traddr = match (address.traddr.to_canonical(), local) {
        (IpAddr::V4(any), IpAddr::V4(_)) if any.is_unspecified() => local,
        (IpAddr::V6(any), _) if any.is_unspecified() && listener.takes(local) => local,
        (any, _) if any.is_unspecified() => return None,
        (own, _) if own.is_loopback() && !local.is_loopback() => return None,
        (own, _) => own,
    };
    Some(TransportAddress { traddr, ..address })
}

impl Entry<'_> {
    fn encode(&self) -> DiscoveryEntry {
        let (subtype, secure) = match self.what {
            What::Current => (SubsystemType::CurrentDiscovery, false),
            What::Referral(referral) if referral.subsystem.is_discovery() => {
                (SubsystemType::Referral, referral.secure_channel)
            }
            What::Referral(referral) => (SubsystemType::Nvm, referral.secure_channel),
            What::Subsystem(_) => (SubsystemType::Nvm, false),
        };
        // Not "not required", which libnvme up to 1.3 takes as TLS being offered: its connect-all then insists on a key.
        let requirements = TransportRequirements {
            secure_channel: if secure {
                SecureChannel::Required
            } else {
                SecureChannel::NotSpecified
            },
            // How it is elsewhere is not known here.
            sq_flow_control_disable: !matches!(self.what, What::Referral(_)),
        };
        let mut entry = DiscoveryEntry {
            subtype: subtype.code(),
            treq: requirements.into(),
            portid: U16::new(self.port),
            cntlid: U16::new(CONTROLLER_DYNAMIC),
            asqsz: U16::new(self.queue_depth),
            ..DiscoveryEntry::new_zeroed()
        };
        entry.set_address(&self.address);
        match self.what {
            What::Subsystem(nqn) => entry.subnqn = nqn.to_wire(),
            What::Referral(referral) => entry.subnqn = referral.subsystem.to_wire(),
            What::Current => {
                let flags = DiscoveryFlags::DUPLICATE | DiscoveryFlags::PERSISTENT;
                entry.eflags = U16::new(flags.bits());
                for (to, from) in entry.subnqn.iter_mut().zip(DISCOVERY_NQN.bytes()) {
                    *to = from;
                }
            }
        }
        if self.address.trtype == TransportType::Rdma {
            let subtype = RdmaAddressSubtype {
                qptype: 1, // reliable connected
                prtype: 1, // provider not specified
                cms: 1,    // RDMA_IP_CM
                ..RdmaAddressSubtype::default()
            };
            entry.tsas = zerocopy::transmute!(subtype);
        }
        // TSAS of TCP stays zero where there is no security.
        if self.address.trtype == TransportType::Tcp && secure {
            let subtype =
                TcpAddressSubtype { sectype: SECURITY_TLS, ..TcpAddressSubtype::default() };
            entry.tsas = zerocopy::transmute!(subtype);
        }
        entry
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use proptest::prelude::*;
    use zerocopy::FromBytes;

    use super::*;
    use crate::configuration::{Hosts, ListenerId, Reach, SubsystemOptions};

    fn nqn(name: &str) -> Nqn {
        format!("nqn.2026-11.io.tidegate:{name}").parse().unwrap()
    }

    fn listener(id: u16, trtype: TransportType, address: &str) -> Listener {
        let address: SocketAddr = address.parse().unwrap();
        let address = TransportAddress { trtype, traddr: address.ip(), trsvcid: address.port() };
        Listener { id: ListenerId(id), address }
    }

    /// Two listeners and two subsystems: one for everybody everywhere, one for a host on listener 2.
    fn example() -> Arc<Configuration> {
        let mut builder = Configuration::empty().change();
        builder.add_listener(listener(1, TransportType::Tcp, "0.0.0.0:4420")).unwrap();
        builder.add_listener(listener(2, TransportType::Tcp, "192.0.2.2:4421")).unwrap();
        let open = SubsystemOptions { hosts: Hosts::Any, ..SubsystemOptions::default() };
        builder.add_subsystem(nqn("open"), open).unwrap();
        let closed = SubsystemOptions {
            hosts: Hosts::from_iter([nqn("friend")]),
            reach: Reach::from_iter([ListenerId(2)]),
            ..SubsystemOptions::default()
        };
        builder.add_subsystem(nqn("closed"), closed).unwrap();
        builder.build().unwrap()
    }

    /// The whole log, read at once.
    fn read(log: &DiscoveryLog<'_>) -> (DiscoveryHeader, Vec<DiscoveryEntry>) {
        let mut bytes = vec![0xaa; usize::try_from(log.length()).unwrap()];
        log.write(&mut Window::new(0, &mut bytes));
        let (header, entries) = DiscoveryHeader::read_from_prefix(&bytes).unwrap();
        let entries = <[DiscoveryEntry]>::ref_from_bytes(entries).unwrap();
        assert_eq!(header.numrec.get(), entries.len() as u64);
        (header, entries.to_vec())
    }

    fn summary(configuration: &Configuration, host: &str, local: &str) -> Vec<String> {
        let host = nqn(host);
        let log = DiscoveryLog::new(configuration, &host, local.parse().unwrap());
        let describe = |entry: &DiscoveryEntry| {
            let name = entry.subsystem().unwrap();
            let name = name.as_str().rsplit([':', '.']).next().unwrap().to_owned();
            format!("{name} {} {}", entry.portid.get(), entry.address().unwrap().socket())
        };
        read(&log).1.iter().map(describe).collect()
    }

    #[test]
    fn a_host_sees_what_it_may_use_and_nothing_else() {
        let configuration = example();
        assert_eq!(
            summary(&configuration, "stranger", "192.0.2.1"),
            [
                "discovery 1 192.0.2.1:4420",
                "discovery 2 192.0.2.2:4421",
                "open 1 192.0.2.1:4420",
                "open 2 192.0.2.2:4421",
            ]
        );
        assert_eq!(
            summary(&configuration, "friend", "127.0.0.1"),
            [
                "discovery 1 127.0.0.1:4420",
                "discovery 2 192.0.2.2:4421",
                "closed 2 192.0.2.2:4421",
                "open 1 127.0.0.1:4420",
                "open 2 192.0.2.2:4421",
            ]
        );
    }

    #[test]
    fn a_listener_is_named_by_an_address_that_the_host_can_reach() {
        let seen = |address: &str, local: &str| {
            let listener = listener(1, TransportType::Tcp, address);
            let local: IpAddr = local.parse().unwrap();
            let seen = seen_from(local.to_canonical(), &listener);
            seen.map(|address| address.socket().to_string())
        };
        let named = |text: &str| Some(text.to_owned());
        assert_eq!(seen("0.0.0.0:1", "192.0.2.1"), named("192.0.2.1:1"));
        assert_eq!(seen("0.0.0.0:1", "::ffff:192.0.2.1"), named("192.0.2.1:1"));
        assert_eq!(seen("0.0.0.0:1", "2001:db8::1"), None);
        assert_eq!(seen("[::]:1", "2001:db8::1"), named("[2001:db8::1]:1"));
        assert_eq!(seen("[::]:1", "192.0.2.1"), named("192.0.2.1:1"));
        assert_eq!(seen("192.0.2.7:1", "192.0.2.1"), named("192.0.2.7:1"));
        assert_eq!(seen("192.0.2.7:1", "127.0.0.1"), named("192.0.2.7:1"));
        assert_eq!(seen("127.0.0.1:1", "192.0.2.1"), None);
        assert_eq!(seen("127.0.0.1:1", "127.0.0.1"), named("127.0.0.1:1"));
        assert_eq!(seen("[::1]:1", "127.0.0.1"), named("[::1]:1"));
    }

    #[test]
    fn entries_say_what_hosts_rely_on() {
        let configuration = example();
        let host = nqn("stranger");
        let log = DiscoveryLog::new(&configuration, &host, "192.0.2.1".parse().unwrap());
        let (header, entries) = read(&log);
        assert_eq!(header.genctr.get(), 1);
        assert_eq!(header.recfmt.get(), 0);
        let [current, _, open, _] = entries.as_slice() else { panic!() };
        assert_eq!(current.subtype, 3);
        assert_eq!(current.eflags.get(), 0b11);
        assert!(current.subnqn.starts_with(b"nqn.2014-08.org.nvmexpress.discovery\0"));
        assert_eq!((open.trtype, open.adrfam, open.subtype), (3, 1, 2));
        // Secure channel not specified (00b), SQ flow control disable supported (bit 2).
        assert_eq!(open.treq, 0b100);
        assert_eq!(open.cntlid.get(), 0xffff);
        assert_eq!(open.asqsz.get(), 128);
        assert_eq!(open.eflags.get(), 0);
        assert_eq!(open.tsas, [0; 256]);
    }

    #[test]
    fn rdma_says_how_to_connect() {
        let mut builder = Configuration::empty().change();
        builder.add_listener(listener(1, TransportType::Rdma, "[2001:db8::1]:4420")).unwrap();
        let configuration = builder.build().unwrap();
        let host = nqn("host");
        let log = DiscoveryLog::new(&configuration, &host, "2001:db8::1".parse().unwrap());
        let (_, entries) = read(&log);
        let [entry] = entries.as_slice() else { panic!() };
        assert_eq!((entry.trtype, entry.adrfam), (1, 2));
        assert!(entry.tsas.starts_with(&[1, 1, 1, 0]));
    }

    #[test]
    fn referrals_lead_elsewhere() {
        let before = example();
        let referral = |address: &str, subsystem: Nqn, secure_channel| Referral {
            address: listener(0, TransportType::Tcp, address).address,
            subsystem,
            secure_channel,
        };
        let mut builder = before.change();
        builder.put_referral(referral("192.0.2.9:8009", Nqn::discovery(), false));
        builder.put_referral(referral("192.0.2.8:4420", nqn("elsewhere"), true));
        let after = builder.build().unwrap();
        let host = nqn("stranger");
        let log = DiscoveryLog::new(&after, &host, "192.0.2.1".parse().unwrap());
        assert!(!log.same_entries(&DiscoveryLog::new(
            &before,
            &host,
            "192.0.2.1".parse().unwrap()
        )));
        let (header, entries) = read(&log);
        assert_eq!(header.genctr.get(), before.discovery_generation() + 1);
        let [_, _, _, _, subsystem, discovery] = entries.as_slice() else { panic!() };
        assert_eq!((subsystem.subtype, subsystem.treq, subsystem.tsas[0]), (2, 1, 2));
        assert_eq!((discovery.subtype, discovery.treq, discovery.tsas[0]), (1, 0, 0));
        assert_eq!(discovery.subsystem().unwrap(), Nqn::discovery());
        assert_eq!(discovery.address().unwrap().socket(), "192.0.2.9:8009".parse().unwrap());
        assert_eq!((discovery.portid.get(), discovery.asqsz.get()), (0, 32));
        // The same thing once; what is said of it last holds.
        let mut builder = after.change();
        builder.put_referral(referral("192.0.2.9:8009", Nqn::discovery(), true));
        builder.remove_referral(&referral("192.0.2.8:4420", nqn("elsewhere"), false));
        let last = builder.build().unwrap();
        assert_eq!(last.referrals(), [referral("192.0.2.9:8009", Nqn::discovery(), true)]);
        assert_eq!(last.discovery_generation(), after.discovery_generation() + 1);
    }

    #[test]
    fn only_those_concerned_notice_a_change() {
        let before = example();
        let mut builder = before.change();
        let closed = before.subsystem(&nqn("closed")).unwrap().options().clone();
        let hosts = Hosts::from_iter([nqn("friend"), nqn("newcomer")]);
        builder.change_subsystem(&nqn("closed"), SubsystemOptions { hosts, ..closed }).unwrap();
        let after = builder.build().unwrap();
        let same = |host: &str| {
            let (host, local) = (nqn(host), "192.0.2.1".parse().unwrap());
            let before = DiscoveryLog::new(&before, &host, local);
            before.same_entries(&DiscoveryLog::new(&after, &host, local))
        };
        assert!(same("friend") && same("stranger") && !same("newcomer"));
        assert_eq!(after.discovery_generation(), before.discovery_generation() + 1);
    }

    proptest! {
        #[test]
        fn pages_put_together_are_the_whole(
            subsystems in 0_usize..6,
            listeners in 0_u16..4,
            page in 1_usize..3000,
        ) {
            let mut builder = Configuration::empty().change();
            for id in 0..listeners {
                let address = format!("192.0.2.{}:4420", id + 1);
                builder.add_listener(listener(id, TransportType::Tcp, &address)).unwrap();
            }
            for number in 0..subsystems {
                let open = SubsystemOptions { hosts: Hosts::Any, ..SubsystemOptions::default() };
                builder.add_subsystem(nqn(&number.to_string()), open).unwrap();
            }
            let configuration = builder.build().unwrap();
            let host = nqn("host");
            let log = DiscoveryLog::new(&configuration, &host, "192.0.2.1".parse().unwrap());
            let length = usize::try_from(log.length()).unwrap();
            prop_assert_eq!(length, 1024 * (1 + usize::from(listeners) * (1 + subsystems)));
            let mut whole = vec![0xaa; length];
            log.write(&mut Window::new(0, &mut whole));
            let mut pages = Vec::new();
            while pages.len() < length {
                let mut bytes = vec![0xaa; page];
                log.write(&mut Window::new(pages.len() as u64, &mut bytes));
                pages.extend(bytes);
            }
            prop_assert_eq!(&pages[..length], &whole);
            // What lies beyond the end is zero.
            prop_assert!(pages[length..].iter().all(|byte| *byte == 0));
        }
    }
}
