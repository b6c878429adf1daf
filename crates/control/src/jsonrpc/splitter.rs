//! Where one JSON value ends and the next begins, in a stream that marks neither.
//!
//! A state machine over brackets, strings and escapes that looks at each byte once, however few of them come at a time.
//! It decides nothing else: what stands between the brackets is for the parser. Still it knows a byte that
//! no JSON has, and a bracket that closes what was not opened, so that a client of another protocol hears at once.
//!
//! Invariant: `scanned` bytes at the front of the buffer belong to the value under way and are behind `state`;
//! blanks between values are not kept. There is no way on after an error: nothing behind it is known to be the
//! start of a value.
//!
//! Rejected: trying `serde_json` at each arrival (quadratic for a client that writes byte by byte).

use bytes::{Buf, Bytes, BytesMut};
use tokio_util::codec::Decoder;

use super::RpcError;

/// A value larger than this gives its memory back once it has been taken.
const KEPT: usize = 64 * 1024;

/// Splits a stream into texts of one JSON value each.
#[derive(Debug)]
pub struct Splitter {
    message: usize,
    nesting: u32,
    state: State,
    scanned: usize,
    depth: u32,
    /// The brackets that are open, the innermost in the lowest bit: 1 is an object, 0 an array.
    open: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before a value.
    Between,
    /// In an object or array, but not in a string.
    Inside,
    String,
    /// After a backslash.
    Escape,
    /// In a number or a word that is a value by itself, which only its successor ends.
    Bare,
}

/// Why a stream came to its end.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// What came is not JSON, or too much of it: tell the client, and close.
    #[error(transparent)]
    Garbage(RpcError),
}

impl Splitter {
    /// The deepest nesting that can be asked for.
    pub const NESTING: u32 = u64::BITS;

    /// Takes values of at most `message` bytes and `nesting` levels of brackets (64 at most).
    pub fn new(message: usize, nesting: u32) -> Splitter {
        let nesting = nesting.min(Splitter::NESTING);
        Splitter { message, nesting, state: State::Between, scanned: 0, depth: 0, open: 0 }
    }

    /// The length of the value that `bytes` begins with, if it ends there.
    fn end(&mut self, bytes: &[u8]) -> Result<Option<usize>, RpcError> {
        for &byte in bytes.get(self.scanned..).unwrap_or_default() {
            if self.state == State::Bare && ends_bare(byte) {
                return Ok(Some(self.scanned));
            }
            // Before the byte is taken, so that no value longer than the bound is.
            if self.scanned == self.message {
                let most = self.message;
                return Err(RpcError::parse_error(format_args!("longer than {most} bytes")));
            }
            self.scanned += 1;
            self.state = self.step(byte)?;
            if self.state == State::Between {
                return Ok(Some(self.scanned));
            }
        }
        Ok(None)
    }

    fn step(&mut self, byte: u8) -> Result<State, RpcError> {
        Ok(match (self.state, byte) {
            (State::String, b'"') => self.inside(),
            (State::String, b'\\') => State::Escape,
            (State::String | State::Escape, _) | (State::Between | State::Inside, b'"') => {
                State::String
            }
            (State::Bare, _) => State::Bare,
            (State::Between | State::Inside, b'{' | b'[') => {
                if self.depth == self.nesting {
                    let most = self.nesting;
                    return Err(RpcError::parse_error(format_args!("nested over {most} levels")));
                }
                self.depth += 1;
                self.open = self.open << 1 | u64::from(byte == b'{');
                State::Inside
            }
            (State::Inside, b'}' | b']') if (self.open & 1 == 1) == (byte == b'}') => {
                self.depth = self.depth.saturating_sub(1);
                self.open >>= 1;
                self.inside()
            }
            (State::Inside, b',' | b':' | b' ' | b'\t' | b'\r' | b'\n') => State::Inside,
            (State::Inside, _) if bare(byte) => State::Inside,
            (State::Between, _) if bare(byte) => State::Bare,
            _ => {
                let shown = byte.escape_ascii();
                return Err(RpcError::parse_error(format_args!("'{shown}' where no JSON has it")));
            }
        })
    }

    /// After a string or a closing bracket.
    fn inside(&self) -> State {
        if self.depth == 0 { State::Between } else { State::Inside }
    }

    fn take(&mut self, buffer: &mut BytesMut, length: usize) -> Bytes {
        (self.scanned, self.state) = (0, State::Between);
        let text = buffer.split_to(length).freeze();
        // Otherwise a connection would hold for good the memory of the largest value it ever sent.
        if length > KEPT && buffer.len() <= length {
            *buffer = BytesMut::from(&buffer[..]);
        }
        text
    }
}

impl Decoder for Splitter {
    type Item = Bytes;
    type Error = SplitError;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, SplitError> {
        if self.state == State::Between {
            buffer.advance(buffer.iter().take_while(|&&byte| blank(byte)).count());
        }
        let end = self.end(buffer).map_err(SplitError::Garbage)?;
        Ok(end.map(|length| self.take(buffer, length)))
    }

    /// At the end of the stream a number or a word is whole; anything else under way is cut off.
    fn decode_eof(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, SplitError> {
        if let Some(text) = self.decode(buffer)? {
            return Ok(Some(text));
        }
        match self.state {
            State::Between => Ok(None),
            State::Bare => Ok(Some(self.take(buffer, self.scanned))),
            _ => {
                // Told once: the stream has nothing more to say.
                buffer.clear();
                self.take(buffer, 0);
                (self.depth, self.open) = (0, 0);
                Err(SplitError::Garbage(RpcError::parse_error("the stream ends within a value")))
            }
        }
    }
}

fn blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// What numbers and the words `true`, `false` and `null` are made of.
fn bare(byte: u8) -> bool {
    byte.is_ascii_digit() || b"+-.eEtrufalsn".contains(&byte)
}

fn ends_bare(byte: u8) -> bool {
    blank(byte) || b"\"{}[],:".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// The values that come out of `pieces`, and whether the stream ended well.
    fn split(splitter: &mut Splitter, pieces: &[&[u8]]) -> (Vec<Value>, bool) {
        let (mut buffer, mut values) = (BytesMut::new(), Vec::new());
        let mut parse = |text: Bytes| serde_json::from_slice(&text).map(|v| values.push(v)).is_ok();
        let mut whole = || -> Result<bool, SplitError> {
            for piece in pieces {
                buffer.extend_from_slice(piece);
                while let Some(text) = splitter.decode(&mut buffer)? {
                    if !parse(text) {
                        return Ok(false);
                    }
                }
            }
            while let Some(text) = splitter.decode_eof(&mut buffer)? {
                if !parse(text) {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        let well = whole().unwrap_or(false);
        (values, well)
    }

    fn oracle(text: &[u8]) -> (Vec<Value>, bool) {
        let mut values = Vec::new();
        for value in serde_json::Deserializer::from_slice(text).into_iter() {
            match value {
                Ok(value) => values.push(value),
                Err(_) => return (values, false),
            }
        }
        (values, true)
    }

    fn pieces<'a>(text: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        ends.extend([0, text.len()]);
        ends.sort_unstable();
        ends.windows(2).map(|ends| &text[ends[0]..ends[1]]).collect()
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            r#"[\[\]{}",:\\a]{0,8}"#.prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::hash_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn values_come_out_as_they_went_in(
            values in prop::collection::vec((value(), any::<bool>(), "[ \t\r\n]{0,3}"), 0..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let mut text = String::new();
            for (value, pretty, blanks) in &values {
                text += &match pretty {
                    true => serde_json::to_string_pretty(value).unwrap(),
                    false => value.to_string(),
                };
                text += blanks;
                if !value.is_object() && !value.is_array() && !value.is_string() {
                    text += "\n";
                }
            }
            let expected = oracle(text.as_bytes());
            prop_assert!(expected.1 && expected.0.len() == values.len());
            let mut splitter = Splitter::new(1 << 20, 64);
            prop_assert_eq!(split(&mut splitter, &pieces(text.as_bytes(), &cuts)), expected.clone());
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            prop_assert_eq!(split(&mut Splitter::new(1 << 20, 64), &bytes), expected);
        }

        /// Bytes that are nearly JSON: the same values come out, and the stream breaks behind the same one.
        #[test]
        fn nonsense_breaks_where_the_parser_says(
            text in prop_oneof![
                r#"([\[\]{}",:\\ \n01.e+-]|true|false|null|"a"|\[\]|\{\}|"a":1|\\"|\\u0041){0,24}"#
                    .prop_map(String::into_bytes),
                prop::collection::vec(any::<u8>(), 0..12),
            ],
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let found = split(&mut Splitter::new(1 << 20, 64), &pieces(&text, &cuts));
            prop_assert_eq!(found, oracle(&text));
        }

        #[test]
        fn no_value_beyond_the_bounds(depth in 0_usize..80, length in 1_usize..80) {
            let deep = "[".repeat(depth) + &"]".repeat(depth);
            prop_assert_eq!(split(&mut Splitter::new(1000, 64), &[deep.as_bytes()]).1, depth <= 64);
            for text in ["1".repeat(length.min(18)), format!("\"{}\"", "x".repeat(length))] {
                let fits = text.len() <= 40;
                prop_assert_eq!(split(&mut Splitter::new(40, 64), &[text.as_bytes()]).1, fits);
                prop_assert_eq!(split(&mut Splitter::new(40, 64), &[text.as_bytes(), b" "]).1, fits);
            }
        }
    }

    /// Each byte is looked at once: four times as many take about four times as long, not sixteen times.
    /// Counted rather than timed: what has been scanned is never scanned again.
    #[test]
    fn bytes_that_come_singly_are_looked_at_once() {
        let mut splitter = Splitter::new(1 << 20, 64);
        let mut buffer = BytesMut::new();
        buffer.extend_from_slice(b"[\"");
        for count in 2..100_000 {
            assert!(splitter.decode(&mut buffer).unwrap().is_none());
            assert_eq!(splitter.scanned, count);
            buffer.extend_from_slice(b"x");
        }
        buffer.extend_from_slice(b"\"]");
        assert_eq!(splitter.decode(&mut buffer).unwrap().unwrap().len(), 100_002);
        assert_eq!((splitter.scanned, buffer.capacity()), (0, 0), "and its memory is given back");
    }

    #[test]
    fn another_protocol_is_known_by_its_first_byte() {
        for text in ["GET / HTTP/1.1", "\0", "}", "\u{feff}{}"] {
            let result = Splitter::new(100, 64).decode(&mut BytesMut::from(text));
            assert!(matches!(result, Err(SplitError::Garbage(error)) if error.code == -32700));
        }
    }
}
