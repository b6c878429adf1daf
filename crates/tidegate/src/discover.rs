//! `tidegate discover`: what subsystems an address offers to this host. The text is laid out as nvme-cli's.

use crate::connection::ConnectionArgs;
use crate::output;
use clap::Args;
use host::Controller;
use nvme::Nqn;
use nvme::address::{AddressFamily, TransportType};
use nvme::log::{DiscoveryEntry, DiscoveryFlags, SecureChannel, SubsystemType};
use serde::Serialize;
use std::fmt;

/// Lists the subsystems that a target offers to this host.
#[derive(Debug, Clone, Args)]
pub(crate) struct DiscoverArgs {
    #[command(flatten)]
    connection: ConnectionArgs,

    /// NQN of the discovery subsystem [default: the well-known one]
    #[arg(short = 'n', long = "nqn", visible_alias = "subsysnqn", value_name = "NQN", value_parser = Nqn::of_peer)]
    nqn: Option<Nqn>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The log in words, with nvme-cli's names.
#[derive(Debug, Serialize)]
struct Log {
    genctr: u64,
    records: Vec<Record>,
}

#[derive(Debug, Serialize)]
struct Record {
    trtype: String,
    adrfam: String,
    subtype: String,
    treq: String,
    portid: u16,
    trsvcid: String,
    subnqn: String,
    traddr: String,
    eflags: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sectype: Option<String>,
}

/// Prints the log of the discovery subsystem.
pub(crate) fn run(args: &DiscoverArgs) -> anyhow::Result<()> {
    output::conclude(read(args), args.json)
}

fn read(args: &DiscoverArgs) -> anyhow::Result<Log> {
    let subsystem = args.nqn.clone().unwrap_or_else(Nqn::discovery);
    let mut options = args.connection.options(&subsystem)?;
    // Looking once asks for no keep alive; KATO would make it a persistent discovery connection.
    options.keep_alive = std::time::Duration::ZERO;
    let mut controller = Controller::connect(options)?;
    let (header, entries) = controller.discovery_log()?;
    // The log has been read; how the controller ends changes nothing.
    let _ = controller.shutdown();

    let records = entries.iter().map(Record::from).collect();
    Ok(Log { genctr: header.genctr.get(), records })
}

/// The name of a code, or its number.
fn named<T: TryFrom<u8> + fmt::Display>(code: u8) -> String {
    T::try_from(code).map_or_else(|_| format!("unrecognized ({code})"), |known| known.to_string())
}

impl From<&DiscoveryEntry> for Record {
    fn from(entry: &DiscoveryEntry) -> Self {
        let mut treq = named::<SecureChannel>(entry.treq & 0x3);
        if entry.treq & 0x4 != 0 {
            treq.push_str(", sq flow control disable supported");
        }
        let flags = DiscoveryFlags::from_bits_truncate(entry.eflags.get());
        let eflags: Vec<&str> = [
            (DiscoveryFlags::PERSISTENT, "explicit discovery connections"),
            (DiscoveryFlags::DUPLICATE, "duplicate discovery information"),
        ]
        .into_iter()
        .filter_map(|(flag, name)| flags.contains(flag).then_some(name))
        .collect();
        let [sectype, ..] = entry.tsas;
        let is_tcp = entry.trtype == TransportType::Tcp.code();
        let subnqn = String::from_utf8_lossy(&entry.subnqn);
        Self {
            trtype: named::<TransportType>(entry.trtype),
            adrfam: named::<AddressFamily>(entry.adrfam),
            subtype: named::<SubsystemType>(entry.subtype),
            treq,
            portid: entry.portid.get(),
            trsvcid: entry.trsvcid().unwrap_or_default().to_owned(),
            subnqn: subnqn.trim_end_matches(['\0', ' ']).to_owned(),
            traddr: entry.traddr().unwrap_or_default().to_owned(),
            eflags: if eflags.is_empty() { String::from("none") } else { eflags.join(", ") },
            sectype: is_tcp.then(|| match sectype {
                0 => String::from("none"),
                1 => String::from("tls"),
                2 => String::from("tls13"),
                other => format!("unrecognized ({other})"),
            }),
        }
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nDiscovery Log Number of Records {}, Generation counter {}",
            self.records.len(),
            self.genctr
        )?;
        for (number, record) in self.records.iter().enumerate() {
            writeln!(f, "=====Discovery Log Entry {number}======")?;
            writeln!(f, "trtype:  {}", record.trtype)?;
            writeln!(f, "adrfam:  {}", record.adrfam)?;
            writeln!(f, "subtype: {}", record.subtype)?;
            writeln!(f, "treq:    {}", record.treq)?;
            writeln!(f, "portid:  {}", record.portid)?;
            writeln!(f, "trsvcid: {}", record.trsvcid)?;
            writeln!(f, "subnqn:  {}", record.subnqn)?;
            writeln!(f, "traddr:  {}", record.traddr)?;
            writeln!(f, "eflags:  {}", record.eflags)?;
            if let Some(sectype) = &record.sectype {
                writeln!(f, "sectype: {sectype}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvme::address::TransportAddress;

    #[test]
    fn an_entry_reads_as_in_nvme_cli() {
        let mut entry = DiscoveryEntry::default();
        entry.set_address(&TransportAddress {
            trtype: TransportType::Tcp,
            traddr: "127.0.0.1".parse().unwrap(),
            trsvcid: 4420,
        });
        entry.subtype = SubsystemType::CurrentDiscovery.code();
        entry.treq = 4;
        entry.subnqn = Nqn::discovery().to_wire();
        entry.eflags = (DiscoveryFlags::DUPLICATE | DiscoveryFlags::PERSISTENT).bits().into();
        let log = Log { genctr: 7, records: vec![Record::from(&entry)] };
        assert_eq!(
            log.to_string(),
            "
Discovery Log Number of Records 1, Generation counter 7
=====Discovery Log Entry 0======
trtype:  tcp
adrfam:  ipv4
subtype: current discovery subsystem
treq:    not specified, sq flow control disable supported
portid:  0
trsvcid: 4420
subnqn:  nqn.2014-08.org.nvmexpress.discovery
traddr:  127.0.0.1
eflags:  explicit discovery connections, duplicate discovery information
sectype: none
"
        );
    }
}
