//! Sizes and durations as people write them: `"1 GiB"`, `4096`, `"50us"`, `"10s"`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A number of bytes. Units are binary: `k`, `KiB` and `K` all mean 1,024, as in fio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

/// The longest time that is taken: beyond it there are only slips, and sums with the clock stay far from overflow.
const LONGEST: Duration = Duration::from_hours(365 * 24);

/// A length of time: `ns`, `us`, `ms`, `s`, `min`; a year at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time(pub(crate) Duration);

/// Splits `"50 us"` into `50` and `"us"`.
fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit.trim()))
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let wrong =
            || format!("{text:?} is not a size: write for example 4096, \"64KiB\" or \"1GiB\"");
        let (number, unit) = split(text).ok_or_else(wrong)?;
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(wrong()),
        };
        number
            .checked_mul(1 << shift)
            .map(Size)
            .ok_or_else(|| format!("{text:?} is more than 2^64 bytes"))
    }
}

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Time, String> {
        let wrong =
            || format!("{text:?} is not a time: write for example \"50us\", \"100ms\" or \"10s\"");
        let (number, unit) = split(text).ok_or_else(wrong)?;
        let duration = match unit {
            "ns" => Duration::from_nanos(number),
            "us" => Duration::from_micros(number),
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "min" => Duration::from_secs(number.checked_mul(60).ok_or_else(wrong)?),
            _ => return Err(wrong()),
        };
        if duration > LONGEST {
            return Err(format!("{text:?} is more than a year"));
        }
        Ok(Time(duration))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        for (shift, unit) in units {
            if self.0 >= 1 << shift && self.0.trailing_zeros() >= shift {
                return write!(f, "{} {unit}", self.0 >> shift);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

impl Size {
    /// For a size that the configuration's check has bounded far below 2^32.
    pub(crate) fn narrow(self) -> u32 {
        u32::try_from(self.0).unwrap_or(u32::MAX)
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of bytes or a size such as \"64KiB\"")
    }

    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
        Ok(Size(bytes))
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
        u64::try_from(bytes).map(Size).map_err(|_| E::custom("a size cannot be negative"))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
        text.parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary() {
        assert_eq!("4096".parse(), Ok(Size(4096)));
        assert_eq!("4k".parse(), Ok(Size(4096)));
        assert_eq!("1 GiB".parse(), Ok(Size(1 << 30)));
        assert!("-1".parse::<Size>().is_err());
        assert!("1.5G".parse::<Size>().is_err());
        assert!("99999999999T".parse::<Size>().is_err());
        assert_eq!(Size(1 << 30).to_string(), "1 GiB");
        assert_eq!(Size(1536).to_string(), "1536 bytes");
    }

    #[test]
    fn times_need_a_unit() {
        assert_eq!("50us".parse(), Ok(Time(Duration::from_micros(50))));
        assert_eq!("2 min".parse(), Ok(Time(Duration::from_mins(2))));
        assert!("50".parse::<Time>().is_err());
    }
}
