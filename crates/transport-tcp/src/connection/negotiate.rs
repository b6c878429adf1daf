//! `ICReq` and `ICResp`: what the two ends agree on before the first command.

use nvme::tcp::{
    ALIGNMENT_MAX, C2hData, CommonHeader, DIGEST_LENGTH, DigestFlags, Flags, IcReq, IcResp, Layout,
    PFV, PduType, Receiver, Rules,
};
use zerocopy::IntoBytes;

use super::terminate::{Breach, Violation};
use crate::config::TcpConfig;

/// CPDA that we ask for: data in PDUs from the host begins at any multiple of four bytes. A Linux
/// host refuses everything else, and nothing here would gain by it.
const CPDA: u8 = 0;

/// What holds for one connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// What we check in PDUs that arrive.
    pub(crate) rules: Rules,
    /// Alignment of the data in PDUs that we send (HPDA).
    pub(crate) hpda: u8,
    /// The PDU that comes most often, a capsule without data: known by its first eight bytes.
    pub(crate) usual: Option<Usual>,
    /// What every `C2HData` begins with, but for its length and the last flags.
    pub(crate) data_header: CommonHeader,
}

/// A common header that needs no checking, since it is the one that was checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usual {
    pub(crate) header: [u8; 8],
    pub(crate) layout: Layout,
}

impl Terms {
    /// Before `ICReq`: no digests.
    pub(crate) fn before(config: &TcpConfig) -> Terms {
        Terms {
            rules: Rules {
                receiver: Receiver::Controller,
                header_digest: false,
                data_digest: false,
                alignment: CPDA,
                max_capsule_data: config.capsule_limit(),
                max_data: config.max_h2c_data,
            },
            hpda: 0,
            usual: None,
            data_header: CommonHeader::default(),
        }
    }

    /// What `request` asks for, all of which is granted: digests as wished. MAXR2T needs no
    /// remembering, since a command never has more than one R2T outstanding here.
    pub(crate) fn agree(config: &TcpConfig, request: &IcReq) -> Result<Terms, Violation> {
        let refuse = |breach| Err(Violation::new(breach, request.as_bytes()));
        if request.pfv.get() != PFV {
            return refuse(Breach::FormatVersion(request.pfv.get()));
        }
        if request.hpda > ALIGNMENT_MAX {
            return refuse(Breach::Alignment(request.hpda));
        }
        let digests = request.digests();
        let mut terms = Terms::before(config);
        terms.rules.header_digest = digests.contains(DigestFlags::HEADER);
        terms.rules.data_digest = digests.contains(DigestFlags::DATA);
        terms.hpda = request.hpda;
        let header = CommonHeader::new(PduType::CapsuleCmd, terms.flags());
        let layout = header.check(&terms.rules).ok();
        terms.usual = layout.map(|layout| Usual { header: zerocopy::transmute!(header), layout });
        terms.data_header =
            CommonHeader::with_data(PduType::C2hData, terms.data_flags(), terms.hpda, 1);
        Ok(terms)
    }

    /// The answer to the `ICReq`.
    pub(crate) fn response(&self) -> IcResp {
        let mut digests = DigestFlags::empty();
        digests.set(DigestFlags::HEADER, self.rules.header_digest);
        digests.set(DigestFlags::DATA, self.rules.data_digest);
        IcResp::new(CPDA, digests, self.rules.max_data)
    }

    /// Flags of a PDU that we send without data.
    pub(crate) fn flags(&self) -> Flags {
        if self.rules.header_digest { Flags::HEADER_DIGEST } else { Flags::empty() }
    }

    /// The header of a `C2HData` with `length` bytes of data from `offset`.
    pub(crate) fn data(&self, cid: u16, offset: u32, length: u32, ending: Flags) -> C2hData {
        let mut header = self.data_header;
        header.flags |= ending.bits();
        let trailer = if self.rules.data_digest { DIGEST_LENGTH } else { 0 };
        let plen = u32::from(header.pdo).saturating_add(length).saturating_add(trailer);
        header.plen = plen.into();
        C2hData {
            header,
            cccid: cid.into(),
            datao: offset.into(),
            datal: length.into(),
            ..C2hData::default()
        }
    }

    /// Bytes of padding between the header of a `C2HData`, with its digest, and the data.
    pub(crate) fn padding(&self) -> usize {
        let digest = if self.rules.header_digest { 4 } else { 0 };
        usize::from(
            self.data_header.pdo.saturating_sub(self.data_header.hlen).saturating_sub(digest),
        )
    }

    /// Flags of a PDU that we send with data.
    fn data_flags(&self) -> Flags {
        let digest = if self.rules.data_digest { Flags::DATA_DIGEST } else { Flags::empty() };
        self.flags() | digest
    }
}
