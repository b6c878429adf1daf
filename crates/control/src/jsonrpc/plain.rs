//! A JSON value in which no key stands twice.
//!
//! Of two, `serde_json` silently keeps the last, SPDK refuses both: whoever sent them meant one of them, and nobody knows
//! which.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Such a value.
#[derive(Debug)]
pub(super) struct Plain(pub(super) Value);

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Reader).map(Self)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Plain(item)) = from.next_element()? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(key) = from.next_key::<String>()? {
            if members.contains_key(&key) {
                return Err(A::Error::custom(format_args!("'{key}' stands there twice")));
            }
            let Plain(value) = from.next_value()?;
            members.insert(key, value);
        }
        Ok(members.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> serde_json::Result<Value> {
        serde_json::from_str(text).map(|Plain(value)| value)
    }

    #[test]
    fn a_key_that_stands_twice_is_named() {
        for text in
            [r#"{"a":1,"a":1}"#, r#"{"b":[{"a":{},"c":0,"a":null}]}"#, r#"{"a":1,"\u0061":2}"#]
        {
            assert!(read(text).unwrap_err().to_string().starts_with("'a' stands there twice"));
        }
        assert!(read(r#"{"a":{"a":1},"b":[{"a":1},{"a":2}]}"#).is_ok());
    }

    proptest! {
        #[test]
        fn any_other_value_is_what_serde_json_reads(
            text in r#"(\{("a":|"b":|)?(\[|\]|\}|,|[0-9.e-]{1,4}|"x"|null|true|false){0,12}){1,3}"#
        ) {
            if let Ok(value) = read(&text) {
                prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
            }
        }

        #[test]
        fn what_serde_json_writes_is_read(numbers in proptest::collection::vec(any::<f64>(), 0..4), text: String, whole: i64) {
            let value = serde_json::json!({ "n": numbers, "t": [text, whole, null], "o": { "n": true } });
            let text = value.to_string();
            prop_assert_eq!(read(&text).unwrap(), serde_json::from_str::<Value>(&text).unwrap());
        }
    }
}
