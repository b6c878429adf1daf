//! What a namespace and a subsystem are called when nobody named them.
//!
//! An identity has to be the same after every restart and on every node that serves the same thing,
//! or a host takes one disk for two and refuses to merge its paths. So nothing here is random: each
//! derived value is a name-based UUID (version 5, RFC 9562) of what the configuration does say. It is
//! never zero, because ESXi refuses a namespace whose NGUID is, and Linux then has nothing to merge by.
//!
//! Order of preference for a namespace: what the configuration says, then what the medium carries,
//! then a derivation from the other identifier, then one from (subsystem NQN, NSID, device name). UUID
//! and NGUID come from one another where only one is given, so that two nodes told the same NGUID agree
//! on the UUID as well, however their devices are called.

use uuid::Uuid;

/// Root of every derived identity. Never change it: every disk that a host knows would change its name.
const ROOT: Uuid = Uuid::from_u128(0x8e1c_2f4b_53d0_5f6e_9a77_71de_6a7e_0001);

/// Both identifiers of a namespace. Neither is ever zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceIdentity {
    /// The namespace UUID (descriptor type 3).
    pub uuid: Uuid,
    /// The namespace globally unique identifier (descriptor type 2).
    pub nguid: [u8; 16],
}

impl NamespaceIdentity {
    /// Completes what is known to a whole identity. Zero values count as not known.
    pub fn complete(
        uuid: Option<Uuid>,
        nguid: Option<[u8; 16]>,
        subsystem: &str,
        nsid: u32,
        device: &str,
    ) -> Self {
        let uuid = uuid.filter(|uuid| !uuid.is_nil());
        let nguid = nguid.filter(|nguid| nguid != &[0; 16]);
        let uuid = uuid.unwrap_or_else(|| match nguid {
            Some(nguid) => derive("nguid", &[&nguid]),
            None => {
                derive("namespace", &[subsystem.as_bytes(), &nsid.to_be_bytes(), device.as_bytes()])
            }
        });
        // The UUID's own 16 bytes are globally unique, which is all that an NGUID has to be.
        Self { uuid, nguid: nguid.unwrap_or_else(|| uuid.into_bytes()) }
    }
}

/// The serial number of a subsystem that was given none: 20 hexadecimal digits of its NQN's hash.
pub fn derive_serial(subsystem: &str) -> String {
    let mut serial = derive("serial", &[subsystem.as_bytes()]).simple().to_string();
    serial.truncate(20);
    serial.make_ascii_uppercase();
    serial
}

/// A name-based UUID of a list of fields. Each is preceded by its length, so that no two lists of fields
/// read the same.
fn derive(kind: &str, fields: &[&[u8]]) -> Uuid {
    let mut name = Vec::with_capacity(256);
    for field in std::iter::once(&kind.as_bytes()).chain(fields) {
        name.extend_from_slice(&(field.len() as u64).to_be_bytes());
        name.extend_from_slice(field);
    }
    Uuid::new_v5(&ROOT, &name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NQN: &str = "nqn.2026-11.io.tidegate:quickstart";

    #[test]
    fn derived_identities_never_change() {
        // Computed apart from this code. A host that knows this disk must know it after every upgrade.
        let identity = NamespaceIdentity::complete(None, None, NQN, 1, "disk0");
        assert_eq!(identity.uuid.to_string(), "e6e15e5e-91d8-5ad4-8f0b-7ea593843054");
        assert_eq!(identity.nguid, identity.uuid.into_bytes());
        assert_eq!(derive_serial(NQN), "4AC4A3B2934A575AAA1D");
    }

    #[test]
    fn zero_counts_as_not_given() {
        assert_eq!(
            NamespaceIdentity::complete(Some(Uuid::nil()), Some([0; 16]), NQN, 1, "disk0"),
            NamespaceIdentity::complete(None, None, NQN, 1, "disk0"),
        );
    }

    #[test]
    fn one_given_identifier_decides_the_other() {
        let nguid = *b"0123456789abcdef";
        let one = NamespaceIdentity::complete(None, Some(nguid), NQN, 1, "disk0");
        let other = NamespaceIdentity::complete(None, Some(nguid), NQN, 1, "another name");
        assert_eq!(one, other);
        assert_eq!(one.nguid, nguid);
        let uuid = Uuid::from_u128(7);
        let given = NamespaceIdentity::complete(Some(uuid), None, NQN, 1, "disk0");
        assert_eq!((given.uuid, given.nguid), (uuid, uuid.into_bytes()));
    }

    proptest! {
        #[test]
        fn different_places_have_different_names(
            a in ("[a-z:.]{0,8}", 1_u32..4, "[a-z:.]{0,8}"),
            b in ("[a-z:.]{0,8}", 1_u32..4, "[a-z:.]{0,8}"),
        ) {
            let of = |(nqn, nsid, device): &(String, u32, String)| {
                NamespaceIdentity::complete(None, None, nqn, *nsid, device)
            };
            prop_assert_eq!(of(&a) == of(&b), a == b);
            prop_assert!(!of(&a).uuid.is_nil());
            prop_assert_eq!(derive_serial(&a.0).len(), 20);
        }
    }
}
