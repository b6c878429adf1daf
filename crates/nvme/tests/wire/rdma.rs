//! Private data of NVMe/RDMA connections.

use super::{bytes, golden};
use nvme::U16;
use nvme::rdma::{Accept, Reject, RejectStatus, Request};
use proptest::prelude::*;

#[test]
fn private_data_is_laid_out_as_specified() {
    let request = Request::new(3, 128, 0x1234);
    golden(
        &request,
        &bytes(32, &[(2, &[3, 0]), (4, &[128, 0]), (6, &[127, 0]), (8, &[0x34, 0x12])]),
    );
    golden(&Accept::new(0x0180), &bytes(32, &[(2, &[0x80, 1])]));
    golden(&Reject::new(RejectStatus::NoResources), &bytes(4, &[(2, &[6, 0])]));
}

#[test]
fn a_malformed_request_earns_its_status() {
    let good = bytes(56, &[(2, &[1, 0]), (4, &[32, 0]), (6, &[31, 0])]);
    assert_eq!(Request::parse(&good).map(|request| request.commands()), Ok(32));
    assert!(Request::parse(&good[..32]).is_ok(), "what is not padded is as good");
    for length in 0..32 {
        assert_eq!(Request::parse(&good[..length]), Err(RejectStatus::InvalidLength));
    }
    for at in 0..2 {
        let mut wrong = good.clone();
        wrong[at] = 1;
        assert_eq!(Request::parse(&wrong), Err(RejectStatus::InvalidRecordFormat));
    }
    assert_eq!(Request { hsqsize: U16::new(u16::MAX), ..Request::default() }.commands(), 65_536);
}

#[test]
fn every_status_comes_back_and_unknown_ones_are_told() {
    let mut padded = [0; 148];
    for (&status, code) in RejectStatus::ALL.iter().zip(1_u8..) {
        assert_eq!(status.code(), code);
        padded[2] = code;
        assert_eq!(Reject::parse(&padded).map(|reject| reject.status()), Some(Ok(status)));
    }
    assert_eq!(RejectStatus::ALL.len(), 9);
    for code in [0_u16, 10, 0x0101] {
        padded[2..4].copy_from_slice(&code.to_le_bytes());
        assert_eq!(Reject::parse(&padded).map(|reject| reject.status()), Some(Err(code)));
    }
    assert_eq!(Reject::parse(&[0, 0, 1]), None);
    assert_eq!(Reject::parse(&[1, 0, 1, 0]), None);
    assert_eq!(Accept::parse(&[0; 31]), None);
    assert_eq!(Accept::parse(&[1; 32]), None);
}

proptest! {
    #[test]
    fn any_bytes_can_be_parsed(data in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = (Request::parse(&data), Accept::parse(&data));
        let _ = Reject::parse(&data).map(|reject| reject.status());
    }
}
