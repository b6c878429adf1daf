//! The one user and password of the HTTP socket.
//!
//! They come from a file, are compared in constant time, and are never shown: not in a log, a reply or `Debug`.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use subtle::ConstantTimeEq;

/// The most bytes of user, colon and password. Whatever is presented is compared over all of them.
const MOST: usize = 512;

/// With or without padding at the end: clients differ.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a client has to present.
#[derive(Clone)]
pub struct Credentials(Padded);

/// `user:password` with its length, filled up to a length that tells nothing.
#[derive(Clone)]
struct Padded {
    length: u64,
    bytes: [u8; MOST],
}

/// Why there are none. Says nothing of what the file holds.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read.
    #[error("the credentials in {} cannot be read: {source}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{} has to hold one line, user:password, of at most {MOST} bytes", .0.display())]
    Malformed(PathBuf),
}

impl Credentials {
    /// Reads `user:password` from a file; a newline at its end is not part of the password.
    pub fn read(path: &Path) -> Result<Credentials, CredentialsError> {
        // A little more than fits, so that what does not fit is not taken for what does.
        let mut text = Vec::new();
        let most = u64::try_from(MOST).unwrap_or(u64::MAX).saturating_add(3);
        std::fs::File::open(path)
            .and_then(|file| file.take(most).read_to_end(&mut text))
            .map_err(|source| CredentialsError::Unreadable { path: path.into(), source })?;
        let line = text.strip_suffix(b"\n").unwrap_or(&text);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        Credentials::parse(line).ok_or_else(|| CredentialsError::Malformed(path.into()))
    }

    fn parse(line: &[u8]) -> Option<Credentials> {
        let colon = line.iter().position(|&byte| byte == b':')?;
        // An empty password is more likely a mistake than a wish, and no protection.
        let whole = colon > 0 && colon + 1 < line.len();
        (whole && !line.iter().any(u8::is_ascii_control)).then_some(())?;
        Some(Credentials(Padded::new(line)?))
    }

    /// Whether the value of an `Authorization` header presents them.
    pub fn are_in(&self, header: &[u8]) -> bool {
        let Some((scheme, value)) = header.split_at_checked(6) else { return false };
        if !scheme.eq_ignore_ascii_case(b"basic ") {
            return false;
        }
        let Ok(presented) = BASE64.decode(value.trim_ascii()) else { return false };
        Padded::new(&presented).is_some_and(|presented| self.0.equals(&presented))
    }
}

impl Padded {
    fn new(text: &[u8]) -> Option<Padded> {
        let mut bytes = [0; MOST];
        bytes.get_mut(..text.len())?.copy_from_slice(text);
        Some(Padded { length: u64::try_from(text.len()).ok()?, bytes })
    }

    fn equals(&self, other: &Padded) -> bool {
        (self.length.ct_eq(&other.length) & self.bytes.ct_eq(&other.bytes)).into()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Credentials(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn header(text: &[u8]) -> Vec<u8> {
        let mut header = b"Basic ".to_vec();
        header.extend(base64::engine::general_purpose::STANDARD.encode(text).into_bytes());
        header
    }

    proptest! {
        #[test]
        fn only_the_same_are_accepted(
            user in "[a-z]{1,4}", password in "[a-c:]{1,6}", other in "[a-c]{1,4}:[a-c:]{0,6}\0?",
        ) {
            let text = format!("{user}:{password}");
            let credentials = Credentials::parse(text.as_bytes()).unwrap();
            prop_assert!(credentials.are_in(&header(text.as_bytes())));
            prop_assert_eq!(credentials.are_in(&header(other.as_bytes())), text == other);
            let longer = format!("{text}\0");
            prop_assert!(!credentials.are_in(&header(longer.as_bytes())));
            prop_assert!(!credentials.are_in(text.as_bytes()));
        }

        #[test]
        fn any_header_may_come(header in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert!(!Credentials::parse(b"user:password").unwrap().are_in(&header));
        }
    }

    #[test]
    fn scheme_and_padding_may_be_written_otherwise() {
        let credentials = Credentials::parse(b"a:b").unwrap();
        for header in ["Basic YTpi", "basic YTpi", "BASIC  YTpi "] {
            assert!(credentials.are_in(header.as_bytes()), "{header}");
        }
        let credentials = Credentials::parse(b"aa:b").unwrap();
        assert!(credentials.are_in(b"Basic YWE6Yg") && credentials.are_in(b"Basic YWE6Yg=="));
        assert!(!credentials.are_in(b"Bearer YWE6Yg=="));
    }

    #[test]
    fn a_file_holds_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("credentials");
        let long = [b'x'; MOST + 1].map(char::from).iter().collect::<String>();
        for (text, accepted) in [
            ("user:secret", true),
            ("user:secret\n", true),
            ("user:secret\r\n", true),
            ("user: se cret ", true),
            ("user", false),
            ("user:", false),
            (":secret", false),
            ("", false),
            ("user:secret\nmore\n", false),
            (&long.replacen("xx", "x:", 1), false),
            (&format!("{}\n\n", &long.replacen("xx", "x:", 1)[..MOST]), false),
            (&long.replacen("xx", "x:", 1)[..MOST], true),
        ] {
            fs::write(&path, text).unwrap();
            let result = Credentials::read(&path);
            assert_eq!(result.is_ok(), accepted, "{text:?}");
            let told = result.as_ref().err().map(ToString::to_string);
            let shown = format!("{result:?} {told:?}");
            assert!(!shown.contains("secret") && !shown.contains("xxx"), "{shown}");
        }
        let error = Credentials::read(&directory.path().join("none")).unwrap_err();
        assert!(matches!(error, CredentialsError::Unreadable { .. }));
    }
}
