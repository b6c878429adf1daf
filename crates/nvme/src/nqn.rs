//! Names of subsystems and hosts: the NVMe Qualified Name and the host identifier.
//!
//! NVMe Base 2.0c, section 4.5 "NVMe Qualified Names". Two rules, for two ways in:
//!
//! * **What a person writes** (configuration, command line) goes through [`FromStr`], which is
//!   strict enough to catch a slip: at most 223 bytes of UTF-8 that begin `nqn.yyyy-mm.` and go on,
//!   and for the uuid form a well-formed UUID. The reverse domain is not parsed further.
//! * **What a peer calls itself** goes through [`Nqn::from_wire`] and [`Nqn::of_peer`], which ask
//!   only what it takes to handle the name safely. The Linux host sends any string that its user
//!   typed as HOSTNQN, Linux's target gives out any name at all, and neither it nor SPDK looks at
//!   the form of a HOSTNQN. A stricter rule would refuse hosts that everybody else serves; an
//!   allow-list compares bytes either way.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest NQN in bytes, without the terminator.
pub const NQN_MAX: usize = 223;
/// Bytes that an NQN takes up on the wire, terminator and padding included.
pub const NQN_FIELD: usize = 256;
/// The well-known NQN of the discovery service.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// What an NQN made from a UUID begins with.
pub const UUID_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";

/// An NVMe Qualified Name: 1 to 223 bytes of UTF-8 without control characters, and of the
/// prescribed form if it was parsed from text. Cloning shares the text. Names are equal if their
/// bytes are.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nqn(Arc<str>);

/// Why a text is not an NQN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NqnError {
    /// No bytes.
    #[error("NQN is empty")]
    Empty,
    /// More than [`NQN_MAX`] bytes.
    #[error("NQN has {0} bytes, {NQN_MAX} are allowed")]
    TooLong(usize),
    /// Does not begin `nqn.`.
    #[error("NQN must begin with \"nqn.\"")]
    Prefix,
    /// `nqn.` is not followed by `yyyy-mm.`, or there is no such month.
    #[error("NQN must have a date yyyy-mm and a period after \"nqn.\"")]
    Date,
    /// Nothing after the date.
    #[error("NQN must name a domain after the date")]
    Domain,
    /// [`UUID_PREFIX`] is not followed by a UUID.
    #[error(
        "NQN must end in a UUID (xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx) after \"{UUID_PREFIX}\""
    )]
    Uuid,
    /// A control character.
    #[error("NQN has a control character at byte {0}")]
    Control(usize),
    /// Bytes from the wire that are not UTF-8.
    #[error("NQN is not UTF-8 from byte {0}")]
    Utf8(usize),
    /// A field from the wire without a terminator.
    #[error("NQN field has no terminating NUL")]
    Unterminated,
}

impl Nqn {
    /// The discovery service.
    pub fn discovery() -> Self {
        Self(DISCOVERY_NQN.into())
    }

    /// The uuid form, `nqn.2014-08.org.nvmexpress:uuid:...`.
    pub fn from_uuid(uuid: uuid::Uuid) -> Self {
        Self(format!("{UUID_PREFIX}{}", uuid.hyphenated()).into())
    }

    /// From a 256-byte field: the text up to the first NUL, which must be there, under the rule of
    /// [`Nqn::of_peer`].
    pub fn from_wire(field: &[u8; NQN_FIELD]) -> Result<Self, NqnError> {
        let (text, _) = field
            .iter()
            .position(|&byte| byte == 0)
            .and_then(|end| field.split_at_checked(end))
            .ok_or(NqnError::Unterminated)?;
        let text =
            std::str::from_utf8(text).map_err(|error| NqnError::Utf8(error.valid_up_to()))?;
        Self::of_peer(text)
    }

    /// A name that a peer gave itself: not empty, at most [`NQN_MAX`] bytes, no control characters,
    /// whatever its form.
    pub fn of_peer(text: &str) -> Result<Self, NqnError> {
        Self::check_text(text)?;
        Ok(Self(text.into()))
    }

    /// The 256-byte field: the text, then zeroes.
    pub fn to_wire(&self) -> [u8; NQN_FIELD] {
        let mut field = [0; NQN_FIELD];
        for (to, from) in field.iter_mut().zip(self.0.bytes()) {
            *to = from;
        }
        field
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the well-known discovery NQN.
    pub fn is_discovery(&self) -> bool {
        &*self.0 == DISCOVERY_NQN
    }

    fn check_text(text: &str) -> Result<(), NqnError> {
        if text.is_empty() {
            return Err(NqnError::Empty);
        }
        if text.len() > NQN_MAX {
            return Err(NqnError::TooLong(text.len()));
        }
        match text.bytes().position(|byte| byte.is_ascii_control()) {
            Some(at) => Err(NqnError::Control(at)),
            None => Ok(()),
        }
    }

    fn check_form(text: &str) -> Result<(), NqnError> {
        let rest = text.strip_prefix("nqn.").ok_or(NqnError::Prefix)?;
        let mut bytes = rest.bytes();
        for expected in b"dddd-dd." {
            let matches = match (expected, bytes.next()) {
                (b'd', Some(byte)) => byte.is_ascii_digit(),
                (expected, byte) => byte == Some(*expected),
            };
            if !matches {
                return Err(NqnError::Date);
            }
        }
        let month = rest.get(5..7).and_then(|month| month.parse().ok());
        if !month.is_some_and(|month: u8| (1..=12).contains(&month)) {
            return Err(NqnError::Date);
        }
        match bytes.next() {
            None | Some(b':' | b'.') => return Err(NqnError::Domain),
            Some(_) => {}
        }
        if let Some(uuid) = text.strip_prefix(UUID_PREFIX) {
            // Only the hyphenated form: `Uuid::try_parse` would take braces and bare digits as
            // well.
            if uuid.len() != uuid::fmt::Hyphenated::LENGTH || uuid::Uuid::try_parse(uuid).is_err() {
                return Err(NqnError::Uuid);
            }
        }
        Ok(())
    }
}

impl FromStr for Nqn {
    type Err = NqnError;

    fn from_str(text: &str) -> Result<Self, NqnError> {
        Self::check_text(text)?;
        Self::check_form(text)?;
        Ok(Self(text.into()))
    }
}

impl AsRef<str> for Nqn {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nqn({:?})", self.0)
    }
}

/// Host Identifier (HOSTID): sixteen bytes that name a host to reservations; all controllers of one
/// host present the same. Over fabrics always the extended, 128-bit form. Displayed and parsed as a
/// UUID, which is what hosts put there, byte for byte in the order of the text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct HostId(pub [u8; 16]);

impl HostId {
    /// Whether all bytes are zero: no identifier, which Connect does not allow.
    pub fn is_zero(&self) -> bool {
        self.0 == [0; 16]
    }
}

impl From<uuid::Uuid> for HostId {
    fn from(uuid: uuid::Uuid) -> Self {
        Self(uuid.into_bytes())
    }
}

/// A text that is not a host identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("host identifier must be a UUID")]
pub struct HostIdError(#[from] uuid::Error);

impl FromStr for HostId {
    type Err = HostIdError;

    fn from_str(text: &str) -> Result<Self, HostIdError> {
        Ok(Self(uuid::Uuid::try_parse(text)?.into_bytes()))
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).fmt(f)
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostId({self})")
    }
}
