//! Bytes as the parsers of `nvme` see them.

use nvme::fabrics::ConnectData;
use nvme::tcp::{CommonHeader, IcReq, IcResp, PduType, Receiver, Rules, TermReq, Termination};
use nvme::{Nqn, Sqe, admin, fabrics, io};
use zerocopy::FromBytes;

use super::steps::Steps;

/// One PDU: the first bytes say what had been agreed on.
pub fn pdus(bytes: &[u8]) {
    let mut steps = Steps(bytes);
    let setup = steps.byte();
    let rules = Rules {
        receiver: if setup & 1 == 0 { Receiver::Controller } else { Receiver::Host },
        header_digest: setup & 2 != 0,
        data_digest: setup & 4 != 0,
        alignment: steps.byte() & 31,
        max_capsule_data: u32::from(setup >> 3) * 1024,
        max_data: 128 << 10,
    };
    let rest = steps.0;
    header(&rules, rest);
    structures(rest);
    commands(rest);
    names(rest);
}

fn header(rules: &Rules, bytes: &[u8]) {
    let Ok((common, _)) = CommonHeader::read_from_prefix(bytes) else { return };
    match common.check(rules) {
        Ok(layout) => {
            assert_eq!(layout.length, common.plen.get());
            assert_eq!(layout.header_length, u32::from(common.hlen));
            let header = layout.header_length + if layout.header_digest { 4 } else { 0 };
            let data = layout.data_length + if layout.data_digest { 4 } else { 0 };
            assert!(header <= layout.data_offset, "{common:?}: {layout:?}");
            assert_eq!(layout.data_offset + data, layout.length, "{common:?}: {layout:?}");
            assert!(layout.length <= (256 << 10) + 512, "{common:?}: {layout:?}");
            if layout.data_length == 0 {
                assert!(!layout.data_digest, "{common:?}: {layout:?}");
            } else if !matches!(layout.pdu_type, PduType::H2cTermReq | PduType::C2hTermReq) {
                // The copy of a header in a termination request stands right behind its own.
                assert_eq!(layout.data_offset % ((u32::from(rules.alignment) + 1) * 4), 0);
            }
        }
        Err(error) => {
            assert!(error.field_offset() < 8);
            assert!(!error.to_string().is_empty());
            // What it is answered with is well-formed.
            let sender = rules.receiver;
            let answer = Termination::for_header(sender, &error, &common);
            let [request, copy] = answer.parts();
            assert!(request.len() == 24 && copy.len() <= 128);
        }
    }
}

fn structures(bytes: &[u8]) {
    if let Ok((request, _)) = IcReq::read_from_prefix(bytes) {
        let _ = request.digests();
    }
    if let Ok((response, _)) = IcResp::read_from_prefix(bytes) {
        let _ = response.digests();
    }
    if let Ok((request, _)) = TermReq::read_from_prefix(bytes) {
        assert!(!request.status().to_string().is_empty());
    }
    if let Ok((entry, _)) = nvme::log::DiscoveryEntry::read_from_prefix(bytes) {
        let _ = (entry.address(), entry.subsystem());
    }
}

/// What parses says the same after it was written down again.
fn commands(bytes: &[u8]) {
    let Ok((sqe, _)) = Sqe::read_from_prefix(bytes) else { return };
    let nsid = sqe.nsid.get();
    let _ = (sqe.fuse(), sqe.is_fabrics(), sqe.sgl().length());
    if let Ok(command) = io::Command::parse(&sqe) {
        assert_eq!(io::Command::parse(&command.to_sqe(nsid)), Ok(command));
    }
    if let Ok(command) = admin::Command::parse(&sqe) {
        assert_eq!(admin::Command::parse(&command.to_sqe(nsid)), Ok(command));
    }
    if sqe.is_fabrics()
        && let Ok(command) = fabrics::Command::parse(&sqe)
    {
        let again = match command {
            fabrics::Command::PropertyGet(command) => command.to_sqe(),
            fabrics::Command::PropertySet(command) => command.to_sqe(),
            fabrics::Command::Connect(command) => command.to_sqe(),
            fabrics::Command::Disconnect(command) => command.to_sqe(),
            fabrics::Command::Authentication(_) => return,
        };
        assert_eq!(fabrics::Command::parse(&again), Ok(command));
    }
}

fn names(bytes: &[u8]) {
    let (field, _) = bytes.split_at(bytes.len().min(256));
    let mut wire = [0; 256];
    wire[..field.len()].copy_from_slice(field);
    if let Ok(nqn) = Nqn::from_wire(&wire) {
        assert_eq!(Nqn::from_wire(&nqn.to_wire()), Ok(nqn));
    }
    if let Ok((data, _)) = ConnectData::read_from_prefix(bytes) {
        let _ = (data.host(), data.subsystem());
    }
}
