//! NVMe/TCP PDUs, digests, and the check of a common header.

use crate::{bytes, golden, numbered};
use nvme::tcp::{
    C2hData, CapsuleCmd, CapsuleResp, CommonHeader, Crc32c, DigestFlags, FatalErrorStatus, Flags,
    H2cData, HeaderError, IcReq, IcResp, Layout, PduType, R2t, Receiver, Rules, TermReq,
    Termination, crc32c, header_length,
};
use nvme::{Cqe, Sqe, Status};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

#[test]
fn initialize_bytes() {
    let digests = DigestFlags::HEADER | DigestFlags::DATA;
    let request = IcReq::new(3, digests, 0x0102_0304);
    golden(
        &request,
        &bytes(
            128,
            &[(0, &[0x00, 0x00, 128, 0, 128, 0, 0, 0]), (8, &[0, 0, 3, 3]), (12, &[4, 3, 2, 1])],
        ),
    );
    assert_eq!(request.digests(), digests);
    let response = IcResp::new(0, DigestFlags::DATA, 0x0002_0000);
    golden(
        &response,
        &bytes(128, &[(0, &[0x01, 0x00, 128, 0, 128, 0, 0, 0]), (11, &[2]), (12, &[0, 0, 2, 0])]),
    );
    let numbered: IcResp = numbered();
    assert_eq!(numbered.pfv.get(), 0x0908);
    assert_eq!((numbered.cpda, numbered.dgst), (10, 11));
    assert_eq!(numbered.maxh2cdata.get(), 0x0f0e_0d0c);
}

#[test]
fn capsule_bytes() {
    let sqe: Sqe = numbered();
    // 72 bytes of header, 4 of digest, padding to 96 (CPDA 7: multiples of 32), 512 of data, 4 of
    // digest.
    let flags = Flags::HEADER_DIGEST | Flags::DATA_DIGEST;
    let capsule = CapsuleCmd::new(sqe, flags, 7, 512);
    golden(
        &capsule,
        &bytes(72, &[(0, &[0x04, 0x03, 72, 96, 0x64, 0x02, 0, 0]), (8, sqe.as_bytes())]),
    );
    // Without data PDO is 0 and no data digest is counted.
    let bare = CapsuleCmd::new(sqe, flags, 7, 0);
    assert_eq!(bare.header.as_bytes(), [0x04, 0x03, 72, 0, 76, 0, 0, 0]);

    let cqe = Cqe::new(0x0102, 3, Status::SUCCESS);
    golden(
        &CapsuleResp::new(cqe, Flags::HEADER_DIGEST),
        &bytes(24, &[(0, &[0x05, 0x01, 24, 0, 28, 0, 0, 0]), (16, &[3]), (20, &[2, 1])]),
    );
}

#[test]
fn data_bytes() {
    let h2c = H2cData::new(0x0102, 0x0304, 0x1000, 0x0800, Flags::LAST, 0);
    golden(
        &h2c,
        &[
            0x06, 0x04, 24, 24, 0x18, 0x08, 0, 0, 0x02, 0x01, 0x04, 0x03, 0, 0x10, 0, 0, 0, 0x08,
            0, 0, 0, 0, 0, 0,
        ],
    );
    let c2h = C2hData::new(7, 0, 4096, Flags::LAST | Flags::SUCCESS | Flags::DATA_DIGEST, 0);
    golden(
        &c2h,
        &[0x07, 0x0e, 24, 24, 0x1c, 0x10, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0],
    );
    let r2t = R2t::new(0x0102, 0x0304, 0x2000, 0x1_0000, Flags::empty());
    golden(
        &r2t,
        &[
            0x09, 0x00, 24, 0, 24, 0, 0, 0, 0x02, 0x01, 0x04, 0x03, 0, 0x20, 0, 0, 0, 0, 1, 0, 0,
            0, 0, 0,
        ],
    );
}

#[test]
fn termination_bytes() {
    let offender = CommonHeader::read_from_bytes(&[0x06, 0, 23, 0, 24, 0, 0, 0]).unwrap();
    let error = HeaderError::HeaderLength(PduType::H2cData, 23);
    let request = Termination::for_header(Receiver::Controller, &error, &offender);
    let [header, data] = request.parts();
    // C2HTermReq, FES 01h, FEI 2 at byte 10, and the eight bytes that were wrong.
    assert_eq!(header, bytes(24, &[(0, &[0x03, 0, 24, 0, 32, 0, 0, 0]), (8, &[1, 0, 2])]));
    assert_eq!(data, offender.as_bytes());

    let request =
        Termination::new(Receiver::Host, FatalErrorStatus::HeaderDigest, 0x0102_0304, &[9; 200]);
    let [header, data] = request.parts();
    assert_eq!(
        header,
        bytes(24, &[(0, &[0x02, 0, 24, 0, 152, 0, 0, 0]), (8, &[3, 0, 4, 3, 2, 1])])
    );
    assert_eq!(data, [9; 128]);
    let read = TermReq::read_from_bytes(header).unwrap();
    assert_eq!(read.status(), FatalErrorStatus::HeaderDigest);
    assert_eq!(read.fei.get(), 0x0102_0304);
}

#[test]
fn fatal_error_codes() {
    for code in 0..=u16::MAX {
        assert_eq!(u16::from(FatalErrorStatus::from(code)), code);
    }
    assert_eq!(u16::from(FatalErrorStatus::PduSequence), 2);
    assert_eq!(u16::from(FatalErrorStatus::DataTransferOutOfRange), 4);
    assert_eq!(u16::from(FatalErrorStatus::DataTransferLimit), 5);
    assert_eq!(u16::from(FatalErrorStatus::UnsupportedParameter), 6);
}

#[test]
fn digest_vectors() {
    // RFC 3720, appendix B.4, and the check value of the algorithm.
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    let up: Vec<u8> = (0..32).collect();
    assert_eq!(crc32c(&up), 0x46dd_794e);
    let down: Vec<u8> = (0..32).rev().collect();
    assert_eq!(crc32c(&down), 0x113f_db5c);
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc32c(&[]), 0);
    assert_eq!(Crc32c::new().finish(), 0);
}

/// CRC32C bit by bit, as its definition has it.
fn slow_crc32c(data: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in data {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

const CONTROLLER: Rules = Rules {
    receiver: Receiver::Controller,
    header_digest: false,
    data_digest: false,
    alignment: 0,
    max_capsule_data: 8192,
    max_data: 131_072,
};

fn check(raw: [u8; 8], rules: &Rules) -> Result<Layout, HeaderError> {
    CommonHeader::read_from_bytes(&raw).unwrap().check(rules)
}

/// Fatal error status and information with which a header is refused.
fn refusal(raw: [u8; 8], rules: &Rules) -> (u16, u32) {
    let error = check(raw, rules).unwrap_err();
    (error.status().into(), error.field_offset())
}

#[test]
fn headers_that_are_right() {
    let layout = check([0x00, 0, 128, 0, 128, 0, 0, 0], &CONTROLLER).unwrap();
    assert_eq!(layout.pdu_type, PduType::IcReq);
    assert_eq!((layout.header_length, layout.data_length), (128, 0));

    let layout = check([0x04, 0, 72, 72, 0x48, 0x20, 0, 0], &CONTROLLER).unwrap();
    assert_eq!((layout.data_offset, layout.data_length), (72, 8192));

    let digests = Rules { header_digest: true, data_digest: true, alignment: 7, ..CONTROLLER };
    let layout = check([0x04, 3, 72, 96, 0x64, 0x02, 0, 0], &digests).unwrap();
    assert_eq!(
        layout,
        Layout {
            pdu_type: PduType::CapsuleCmd,
            flags: Flags::HEADER_DIGEST | Flags::DATA_DIGEST,
            header_length: 72,
            header_digest: true,
            data_offset: 96,
            data_length: 512,
            data_digest: true,
            length: 612,
        }
    );
    // A command without data need not say DDGSTF, and has PDO 0.
    let layout = check([0x04, 1, 72, 0, 76, 0, 0, 0], &digests).unwrap();
    assert!(layout.header_digest && !layout.data_digest);
    assert_eq!((layout.data_offset, layout.data_length), (76, 0));

    // Termination requests have no digests even where they were negotiated.
    let layout = check([0x02, 0, 24, 0, 152, 0, 0, 0], &digests).unwrap();
    assert_eq!((layout.data_offset, layout.data_length, layout.header_digest), (24, 128, false));
}

#[test]
fn headers_that_are_wrong_and_what_the_termination_says() {
    // PDU-Type: unknown, or one that only a controller sends.
    assert_eq!(refusal([0x08, 0, 24, 0, 24, 0, 0, 0], &CONTROLLER), (1, 0));
    assert_eq!(refusal([0xff, 0, 24, 0, 24, 0, 0, 0], &CONTROLLER), (1, 0));
    assert_eq!(refusal([0x05, 0, 24, 0, 24, 0, 0, 0], &CONTROLLER), (1, 0));
    // Flags: digests that were not, or were, negotiated.
    assert_eq!(refusal([0x04, 1, 72, 0, 76, 0, 0, 0], &CONTROLLER), (1, 1));
    assert_eq!(refusal([0x06, 2, 24, 24, 28, 0, 0, 0], &CONTROLLER), (1, 1));
    let header_digest = Rules { header_digest: true, ..CONTROLLER };
    assert_eq!(refusal([0x04, 0, 72, 0, 72, 0, 0, 0], &header_digest), (1, 1));
    let data_digest = Rules { data_digest: true, ..CONTROLLER };
    assert_eq!(refusal([0x06, 0, 24, 24, 32, 0, 0, 0], &data_digest), (1, 1));
    // HLEN.
    assert_eq!(refusal([0x04, 0, 71, 0, 72, 0, 0, 0], &CONTROLLER), (1, 2));
    assert_eq!(refusal([0x00, 0, 24, 0, 128, 0, 0, 0], &CONTROLLER), (1, 2));
    // PDO: in the header, not aligned.
    assert_eq!(refusal([0x04, 0, 72, 0, 200, 0, 0, 0], &CONTROLLER), (1, 3));
    assert_eq!(refusal([0x04, 0, 72, 68, 200, 0, 0, 0], &CONTROLLER), (1, 3));
    assert_eq!(refusal([0x04, 0, 72, 73, 200, 0, 0, 0], &CONTROLLER), (1, 3));
    let aligned = Rules { alignment: 31, ..CONTROLLER };
    assert_eq!(refusal([0x04, 0, 72, 76, 200, 0, 0, 0], &aligned), (1, 3));
    assert!(check([0x04, 0, 72, 128, 200, 0, 0, 0], &aligned).is_ok());
    // PLEN: shorter than the header, than the data offset, than the digest; wrong for a fixed size.
    assert_eq!(refusal([0x04, 0, 72, 0, 71, 0, 0, 0], &CONTROLLER), (1, 4));
    assert_eq!(refusal([0x04, 0, 72, 0, 0, 0, 0, 0], &CONTROLLER), (1, 4));
    assert_eq!(refusal([0x04, 0, 72, 100, 99, 0, 0, 0], &CONTROLLER), (1, 4));
    assert_eq!(refusal([0x06, 2, 24, 24, 27, 0, 0, 0], &data_digest), (1, 4));
    assert_eq!(refusal([0x00, 0, 128, 0, 129, 0, 0, 0], &CONTROLLER), (1, 4));
    assert_eq!(refusal([0x02, 0, 24, 0, 153, 0, 0, 0], &CONTROLLER), (1, 4));
    assert_eq!(refusal([0x02, 0, 24, 0, 23, 0, 0, 0], &CONTROLLER), (1, 4));
    let host = Rules { receiver: Receiver::Host, ..CONTROLLER };
    assert_eq!(refusal([0x09, 0, 24, 24, 28, 0, 0, 0], &host), (1, 4));
    // More data than is taken.
    assert_eq!(refusal([0x04, 0, 72, 72, 0x49, 0x20, 0, 0], &CONTROLLER), (5, 0));
    assert_eq!(refusal([0x06, 0, 24, 24, 0x19, 0, 2, 0], &CONTROLLER), (5, 0));
    assert_eq!(refusal([0x06, 0, 24, 24, 0xff, 0xff, 0xff, 0xff], &CONTROLLER), (5, 0));
}

#[test]
fn directions() {
    let from_host = [PduType::IcReq, PduType::H2cTermReq, PduType::CapsuleCmd, PduType::H2cData];
    for &pdu_type in PduType::ALL {
        assert_eq!(Receiver::Controller.accepts(pdu_type), from_host.contains(&pdu_type));
        assert_ne!(Receiver::Controller.accepts(pdu_type), Receiver::Host.accepts(pdu_type));
    }
}

fn receiver_of(pdu_type: PduType) -> Receiver {
    if Receiver::Host.accepts(pdu_type) { Receiver::Host } else { Receiver::Controller }
}

fn any_rules() -> impl Strategy<Value = Rules> {
    (any::<bool>(), any::<bool>(), any::<bool>(), 0u8..32, any::<u32>(), any::<u32>()).prop_map(
        |(host, header_digest, data_digest, alignment, max_capsule_data, max_data)| Rules {
            receiver: if host { Receiver::Host } else { Receiver::Controller },
            header_digest,
            data_digest,
            alignment,
            max_capsule_data,
            max_data,
        },
    )
}

proptest! {
    #[test]
    fn digests_agree_with_the_definition(
        data in prop::collection::vec(any::<u8>(), 0..1000),
        cuts in prop::collection::vec(0usize..1000, 0..6),
    ) {
        let expected = slow_crc32c(&data);
        prop_assert_eq!(crc32c(&data), expected);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(data.len())).collect();
        cuts.extend([0, data.len()]);
        cuts.sort_unstable();
        let mut running = Crc32c::new();
        for pair in cuts.windows(2) {
            running.update(&data[pair[0]..pair[1]]);
        }
        prop_assert_eq!(running.finish(), expected);
    }

    /// Whatever eight bytes arrive, a layout that is accepted adds up and keeps every limit.
    #[test]
    fn accepted_layouts_add_up(
        kind in 0u8..12,
        flags in 0u8..4,
        exact: bool,
        hlen: u8,
        pdo: u8,
        plen in prop_oneof![0u32..400, any::<u32>()],
        rules in any_rules(),
    ) {
        let hlen = match PduType::try_from(kind) {
            Ok(pdu_type) if exact => header_length(pdu_type),
            _ => hlen,
        };
        let mut raw = [kind, flags, hlen, pdo, 0, 0, 0, 0];
        raw[4..].copy_from_slice(&plen.to_le_bytes());
        match check(raw, &rules) {
            Err(error) => {
                let (status, offset) = (u16::from(error.status()), error.field_offset());
                prop_assert!(status == 1 || status == 5);
                prop_assert!(offset <= 4);
                let _ = error.to_string();
            }
            Ok(layout) => {
                prop_assert!(rules.receiver.accepts(layout.pdu_type));
                prop_assert_eq!(layout.length, plen);
                let header_end = layout.header_length + if layout.header_digest { 4 } else { 0 };
                let trailer = if layout.data_digest { 4 } else { 0 };
                prop_assert!(layout.data_offset >= header_end);
                prop_assert_eq!(
                    u64::from(layout.data_offset) + u64::from(layout.data_length) + trailer,
                    u64::from(plen)
                );
                if layout.data_length > 0 {
                    let limit = match layout.pdu_type {
                        PduType::CapsuleCmd => rules.max_capsule_data,
                        PduType::H2cData | PduType::C2hData => rules.max_data,
                        PduType::H2cTermReq | PduType::C2hTermReq => 128,
                        _ => 0,
                    };
                    prop_assert!(layout.data_length <= limit);
                }
            }
        }
    }

    /// What one end builds the other accepts, with data where it was put.
    #[test]
    fn built_headers_are_accepted(
        which in 0usize..9,
        data in 0u32..1_000_000,
        rules in any_rules(),
    ) {
        let pdu_type = PduType::ALL[which];
        let rules = Rules {
            receiver: receiver_of(pdu_type),
            max_capsule_data: u32::MAX,
            max_data: u32::MAX,
            ..rules
        };
        let carries = matches!(pdu_type, PduType::CapsuleCmd | PduType::H2cData | PduType::C2hData);
        let digests = !matches!(
            pdu_type,
            PduType::IcReq | PduType::IcResp | PduType::H2cTermReq | PduType::C2hTermReq
        );
        let data = if carries { data } else { 0 };
        let mut flags = Flags::empty();
        flags.set(Flags::HEADER_DIGEST, digests && rules.header_digest);
        flags.set(Flags::DATA_DIGEST, digests && rules.data_digest);
        let header = CommonHeader::with_data(pdu_type, flags, rules.alignment, data);
        let layout = header.check(&rules).unwrap();
        prop_assert_eq!(layout.pdu_type, pdu_type);
        prop_assert_eq!(layout.data_length, data);
        prop_assert_eq!(layout.length, header.plen.get());
        if data > 0 {
            prop_assert_eq!(layout.data_offset, u32::from(header.pdo));
            prop_assert_eq!(layout.data_offset % ((u32::from(rules.alignment) + 1) * 4), 0);
        }
    }

    /// No PDU that was received makes a termination longer than it may be.
    #[test]
    fn terminations_are_legal(
        offender in prop::collection::vec(any::<u8>(), 0..200),
        code: u16,
        information: u32,
    ) {
        let (controller, host) = (Receiver::Controller, Receiver::Host);
        for (sender, receiver) in [(host, controller), (controller, host)] {
            let termination = Termination::new(sender, code.into(), information, &offender);
            let rules = Rules { receiver, ..CONTROLLER };
            let layout = termination.header().header.check(&rules).unwrap();
            let [header, data] = termination.parts();
            prop_assert_eq!(layout.length as usize, header.len() + data.len());
            prop_assert_eq!(data, &offender[..offender.len().min(128)]);
        }
    }
}
