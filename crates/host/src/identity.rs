//! Who this host says it is.
//!
//! A subsystem knows a host by its NQN and, for reservations, by its identifier; both must stay the same
//! from run to run, or allow-lists and reservations break. So they come from the caller, else from the files that
//! nvme-cli keeps, else from the machine's own identity, and are never made up at random.

use crate::error::HostError;
use nvme::{HostId, Nqn};
use std::fs;
use std::path::Path;
use uuid::Uuid;

/// Where nvme-cli keeps the NQN of a host.
pub const HOSTNQN_FILE: &str = "/etc/nvme/hostnqn";
/// Where nvme-cli keeps the identifier of a host.
pub const HOSTID_FILE: &str = "/etc/nvme/hostid";
/// What identifies a machine that runs systemd or D-Bus.
const MACHINE_ID_FILES: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];

/// NQN and identifier of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostIdentity {
    /// The NQN presented to subsystems.
    pub nqn: Nqn,
    /// The identifier presented to subsystems.
    pub id: HostId,
}

impl HostIdentity {
    /// What the caller gave, completed from this machine.
    pub fn resolve(nqn: Option<Nqn>, id: Option<HostId>) -> Result<Self, HostError> {
        Self::resolve_below(Path::new("/"), nqn, id)
    }

    fn resolve_below(root: &Path, nqn: Option<Nqn>, id: Option<HostId>) -> Result<Self, HostError> {
        let given = nqn.is_some();
        let nqn = match nqn {
            Some(nqn) => nqn,
            None => match first_line(root, HOSTNQN_FILE) {
                Some(line) => line.parse().map_err(|error| {
                    HostError::Identity(format!("{HOSTNQN_FILE}: {error}; correct it or pass -q"))
                })?,
                None => Nqn::from_uuid(machine_uuid(root)?),
            },
        };
        let id = match id {
            Some(id) => id,
            // The file belongs to the machine's own NQN: with a foreign one it would claim that two
            // hosts are one, which Linux targets refuse.
            None => match first_line(root, HOSTID_FILE).filter(|_| !given) {
                Some(line) => line.parse().map_err(|error| {
                    HostError::Identity(format!("{HOSTID_FILE}: {error}; correct it or pass -I"))
                })?,
                None => HostId::from(uuid_of(&nqn)),
            },
        };
        Ok(Self { nqn, id })
    }
}

/// The UUID in an NQN of the uuid form, else one derived from its text.
fn uuid_of(nqn: &Nqn) -> Uuid {
    nqn.as_str()
        .strip_prefix(nvme::nqn::UUID_PREFIX)
        .and_then(|text| Uuid::try_parse(text).ok())
        .unwrap_or_else(|| Uuid::new_v5(&Uuid::NAMESPACE_OID, nqn.as_str().as_bytes()))
}

fn machine_uuid(root: &Path) -> Result<Uuid, HostError> {
    // The machine id itself is meant to stay on the machine (machine-id(5)): only a hash of it leaves.
    MACHINE_ID_FILES
        .iter()
        .find_map(|file| first_line(root, file))
        .map(|line| Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("tidegate {line}").as_bytes()))
        .ok_or_else(|| {
            HostError::Identity(format!(
                "neither {HOSTNQN_FILE} nor {} is there: pass -q nqn.2014-08.org.nvmexpress:uuid:...",
                MACHINE_ID_FILES[0]
            ))
        })
}

fn first_line(root: &Path, file: &str) -> Option<String> {
    let text = fs::read_to_string(root.join(file.trim_start_matches('/'))).ok()?;
    text.lines().map(str::trim).find(|line| !line.is_empty()).map(String::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = root.path().join(file.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const UUID: &str = "6b2a8a2e-3a1b-4f0e-9f7d-0a4c6f5b7c11";

    #[test]
    fn what_nvme_cli_keeps_is_used() {
        let nqn = format!("{}{UUID}", nvme::nqn::UUID_PREFIX);
        let id = "00000000-0000-0000-0000-00000000000a";
        let root = machine(&[(HOSTNQN_FILE, &format!("{nqn}\n")), (HOSTID_FILE, id)]);
        let host = HostIdentity::resolve_below(root.path(), None, None).unwrap();
        assert_eq!((host.nqn.as_str(), host.id.to_string().as_str()), (nqn.as_str(), id));
        // The file's identifier is not lent to another NQN.
        let other = "nqn.2014-08.org.example:other".parse::<Nqn>().unwrap();
        let host = HostIdentity::resolve_below(root.path(), Some(other.clone()), None).unwrap();
        assert_ne!(host.id.to_string(), id);
        let again = HostIdentity::resolve_below(root.path(), Some(other), None).unwrap();
        assert_eq!(host, again);
    }

    #[test]
    fn a_machine_without_these_files_has_one_stable_identity_that_hides_its_id() {
        let id = "0123456789abcdef0123456789abcdef";
        let root = machine(&[("/etc/machine-id", id)]);
        let host = HostIdentity::resolve_below(root.path(), None, None).unwrap();
        assert_eq!(host, HostIdentity::resolve_below(root.path(), None, None).unwrap());
        assert!(host.nqn.as_str().ends_with(&host.id.to_string()));
        assert!(!host.nqn.as_str().replace('-', "").contains(id));
        let other = machine(&[("/etc/machine-id", "f123456789abcdef0123456789abcdef")]);
        assert_ne!(host, HostIdentity::resolve_below(other.path(), None, None).unwrap());
    }

    #[test]
    fn a_machine_without_an_identity_or_with_a_bad_one_says_what_to_do() {
        let root = machine(&[]);
        let text = HostIdentity::resolve_below(root.path(), None, None).unwrap_err().to_string();
        assert!(text.contains("pass -q"), "{text}");
        let root = machine(&[(HOSTNQN_FILE, "no nqn")]);
        let text = HostIdentity::resolve_below(root.path(), None, None).unwrap_err().to_string();
        assert!(text.contains(HOSTNQN_FILE), "{text}");
    }
}
