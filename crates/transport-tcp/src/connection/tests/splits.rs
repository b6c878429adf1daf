//! However a stream is cut up on its way, it means the same.

use nvme::tcp::{DigestFlags, IcReq};
use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::rig::{Rig, Seen};
use crate::config::TcpConfig;

/// What the host sends, in rounds: it answers R2Ts only after it has seen them.
#[derive(Debug)]
struct Session {
    digests: DigestFlags,
    hpda: u8,
    rounds: Vec<Vec<u8>>,
}

fn payload(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| ((i + seed) * 37 % 253) as u8).collect()
}

fn session(digests: DigestFlags, hpda: u8) -> Session {
    let mut rig = Rig::new(TcpConfig::default());
    rig.agree(digests, hpda);
    let mut rounds = vec![IcReq::new(hpda, digests, 0).as_bytes().to_vec()];
    let mut first = rig.read(1, 5000);
    first.extend(rig.write_in_capsule(2, &payload(2, 3000)));
    first.extend(rig.write(3, 9000));
    first.extend(rig.flush(4));
    first.extend(rig.write(5, 600));
    rounds.push(first);
    let mut second = rig.data(3, 0, 0, &payload(3, 9000)[..4000], false);
    second.extend(rig.write_in_capsule(6, &payload(6, 8192)));
    second.extend(rig.data(5, 1, 0, &payload(5, 600), true));
    second.extend(rig.data(3, 0, 4000, &payload(3, 9000)[4000..], true));
    second.extend(rig.read(7, 512));
    second.extend(rig.write(8, 512));
    rounds.push(second);
    rounds.push(rig.data(8, 0, 0, &payload(8, 512), true));
    Session { digests, hpda, rounds }
}

/// What came of it: every byte sent, and everything the target saw.
fn outcome(
    session: &Session,
    sizes: &mut dyn FnMut() -> usize,
    chunk: usize,
) -> (Vec<u8>, Vec<Seen>) {
    let mut rig = Rig::new(TcpConfig::default());
    rig.chunk = chunk;
    for round in &session.rounds {
        let mut rest = &round[..];
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(sizes().clamp(1, rest.len()));
            assert!(rig.deliver(piece).is_empty());
            rest = later;
        }
    }
    assert!(rig.connection.reason().is_none(), "{:?}", rig.connection.reason());
    assert_eq!(rig.core.outstanding(), 0);
    assert_eq!(rig.core.bytes_lent(), 0);
    rig.agree(session.digests, session.hpda);
    let agreement = rig.out.split_off(128);
    rig.parse(&agreement);
    rig.out.extend(agreement);
    (rig.out, rig.core.seen)
}

fn all_terms() -> [(DigestFlags, u8); 3] {
    [
        (DigestFlags::empty(), 0),
        (DigestFlags::HEADER | DigestFlags::DATA, 0),
        (DigestFlags::DATA, 5),
    ]
}

#[test]
fn byte_by_byte_is_like_all_at_once() {
    for (digests, hpda) in all_terms() {
        let session = session(digests, hpda);
        let whole = outcome(&session, &mut || usize::MAX, usize::MAX);
        assert_eq!(whole.1.len(), 6, "flush, and five writes");
        for seen in &whole.1 {
            let expected =
                if seen.cid == 4 { Vec::new() } else { payload(seen.cid.into(), seen.data.len()) };
            assert_eq!(seen.data, expected);
        }
        assert_eq!(outcome(&session, &mut || 1, usize::MAX), whole);
        assert_eq!(outcome(&session, &mut || 1, 1), whole);
    }
}

proptest! {
    #[test]
    fn any_cut_is_like_all_at_once(
        terms in 0..3_usize,
        sizes in prop::collection::vec(1..6000_usize, 1..40),
        chunk in 1..5000_usize,
    ) {
        let (digests, hpda) = all_terms()[terms];
        let session = session(digests, hpda);
        let whole = outcome(&session, &mut || usize::MAX, usize::MAX);
        let mut next = sizes.iter().cycle();
        let cut = outcome(&session, &mut || *next.next().unwrap(), chunk);
        prop_assert_eq!(cut, whole);
    }
}
