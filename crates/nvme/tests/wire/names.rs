//! NQNs, host identifiers, addresses.

use nvme::address::{AddressFamily, TransportAddress, TransportType};
use nvme::nqn::{DISCOVERY_NQN, NQN_FIELD, NqnError};
use nvme::{HostId, Nqn};
use proptest::prelude::*;

fn parse(text: &str) -> Result<Nqn, NqnError> {
    text.parse()
}

#[test]
fn names_that_are_right() {
    for text in [
        DISCOVERY_NQN,
        "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
        "nqn.2014-08.org.nvmexpress:uuid:F81D4FAE-7DEC-11D0-A765-00A0C91E6BF6",
        "nqn.2014-08.com.example:nvme.host.sys.xyz",
        "nqn.2014-08.com.vmware:nvme:esx01",
        "nqn.2016-06.io.spdk:cnode1",
        "nqn.2026-11.io.tidegate:größe",
        "nqn.2015-01.com.example",
    ] {
        let nqn = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(nqn.to_string(), text);
        assert_eq!(Nqn::from_wire(&nqn.to_wire()), Ok(nqn));
    }
    assert!(Nqn::discovery().is_discovery());
    assert!(!parse("nqn.2016-06.io.spdk:cnode1").unwrap().is_discovery());
}

#[test]
fn names_that_are_wrong_and_why() {
    let long = format!("nqn.2016-06.io.spdk:{}", "x".repeat(204));
    let cases = [
        ("", NqnError::Empty),
        ("iqn.2016-06.io.spdk:x", NqnError::Prefix),
        ("NQN.2016-06.io.spdk:x", NqnError::Prefix),
        ("nqn.", NqnError::Date),
        ("nqn.16-06.io.spdk:x", NqnError::Date),
        ("nqn.2016-6.io.spdk:x", NqnError::Date),
        ("nqn.2016-06", NqnError::Date),
        ("nqn.2016_06.io.spdk:x", NqnError::Date),
        ("nqn.2016-06.", NqnError::Domain),
        ("nqn.2016-06.:x", NqnError::Domain),
        ("nqn.2014-08.org.nvmexpress:uuid:", NqnError::Uuid),
        ("nqn.2014-08.org.nvmexpress:uuid:f81d4fae7dec11d0a76500a0c91e6bf6", NqnError::Uuid),
        ("nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bfg", NqnError::Uuid),
        ("nqn.2016-06.io.spdk:a\nb", NqnError::Control(21)),
        (&long, NqnError::TooLong(224)),
    ];
    for (text, error) in cases {
        assert_eq!(parse(text), Err(error), "{text}");
    }
    let longest = &long[..223];
    assert!(parse(longest).is_ok());
}

#[test]
fn peers_may_call_themselves_anything_safe() {
    for text in ["testhost", "blktests-subsystem-1", "nqn.2014-08.org.nvmexpress:uuid:00000000"] {
        assert!(parse(text).is_err());
        let nqn = Nqn::of_peer(text).unwrap();
        assert_eq!(Nqn::from_wire(&nqn.to_wire()).unwrap().as_str(), text);
    }
    assert_eq!(Nqn::of_peer(""), Err(NqnError::Empty));
    assert_eq!(Nqn::of_peer("a\u{7f}"), Err(NqnError::Control(1)));
}

#[test]
fn fields_from_the_wire() {
    assert_eq!(Nqn::from_wire(&[b'x'; NQN_FIELD]), Err(NqnError::Unterminated));
    assert_eq!(Nqn::from_wire(&[0; NQN_FIELD]), Err(NqnError::Empty));
    let mut field = [0; NQN_FIELD];
    field[..2].copy_from_slice(&[b'a', 0xff]);
    assert_eq!(Nqn::from_wire(&field), Err(NqnError::Utf8(1)));
    let mut field = [b'n'; NQN_FIELD];
    field[224] = 0;
    assert_eq!(Nqn::from_wire(&field), Err(NqnError::TooLong(224)));
    field[223] = 0;
    assert!(Nqn::from_wire(&field).is_ok());
    // Bytes behind the terminator are nobody's business.
    let mut field = parse(DISCOVERY_NQN).unwrap().to_wire();
    field[255] = 0xff;
    assert!(Nqn::from_wire(&field).unwrap().is_discovery());
}

#[test]
fn host_identifiers() {
    let id: HostId = "00112233-4455-6677-8899-aabbccddeeff".parse().unwrap();
    assert_eq!(id.0[..4], [0x00, 0x11, 0x22, 0x33]);
    assert_eq!(id.to_string(), "00112233-4455-6677-8899-aabbccddeeff");
    assert!(!id.is_zero() && HostId::default().is_zero());
    assert!("nonsense".parse::<HostId>().is_err());
}

#[test]
fn addresses() {
    let v4 = TransportAddress {
        trtype: TransportType::Tcp,
        traddr: "192.0.2.1".parse().unwrap(),
        trsvcid: 4420,
    };
    assert_eq!(v4.to_string(), "tcp://192.0.2.1:4420");
    assert_eq!(v4.adrfam(), AddressFamily::Ipv4);
    let v6 = TransportAddress {
        trtype: TransportType::Rdma,
        traddr: "2001:db8::1".parse().unwrap(),
        trsvcid: 8009,
    };
    assert_eq!(v6.to_string(), "rdma://[2001:db8::1]:8009");
    assert_eq!(v6.adrfam(), AddressFamily::Ipv6);
    assert_eq!(TransportType::try_from(3), Ok(TransportType::Tcp));
    assert_eq!(TransportType::try_from(4), Err(4));
}

proptest! {
    #[test]
    fn no_name_panics(text in ".{0,300}") {
        let _ = parse(&text);
        let _ = Nqn::of_peer(&text);
    }

    #[test]
    fn no_field_panics_and_what_is_accepted_comes_back(
        raw in prop::collection::vec(any::<u8>(), NQN_FIELD),
    ) {
        let field: [u8; NQN_FIELD] = raw.try_into().unwrap();
        if let Ok(nqn) = Nqn::from_wire(&field) {
            prop_assert_eq!(Nqn::from_wire(&nqn.to_wire()), Ok(nqn));
        }
    }

    #[test]
    fn names_of_the_form_are_accepted(
        name in "nqn\\.[0-9]{4}-(0[1-9]|1[0-2])\\.[a-z]{1,20}(\\.[a-z]{1,20}){0,3}(:[a-zA-Z0-9._-]{0,50})?",
    ) {
        prop_assume!(!name.starts_with(nvme::nqn::UUID_PREFIX));
        prop_assert!(parse(&name).is_ok());
    }
}
