//! Where a PCI function is: domain, bus, device, function.

use std::fmt;
use std::str::FromStr;

/// `0000:03:00.0`. The domain may be left out when one is read; it is 0 then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// A root of its own of the machine; more than 16 bits behind Intel's VMD.
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The device on it, below 32.
    pub device: u8,
    /// The function of that, below 8.
    pub function: u8,
}

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no PCI address: write it as 0000:03:00.0 or 03:00.0")]
pub struct NoAddress(String);

impl FromStr for Address {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Address, NoAddress> {
        parse(text).ok_or_else(|| NoAddress(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Address> {
    let (front, function) = text.rsplit_once('.')?;
    let (front, device) = front.rsplit_once(':')?;
    let (domain, bus) = front.rsplit_once(':').unwrap_or(("0", front));
    Some(Address {
        domain: digits(domain, 1..=8)?,
        bus: u8::try_from(digits(bus, 2..=2)?).ok()?,
        device: u8::try_from(digits(device, 2..=2)?).ok().filter(|&device| device < 32)?,
        function: u8::try_from(digits(function, 1..=1)?).ok().filter(|&function| function < 8)?,
    })
}

/// Hexadecimal digits, so many and nothing else.
fn digits(text: &str, count: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let are_digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (are_digits && count.contains(&text.len())).then(|| u32::from_str_radix(text, 16).ok())?
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_printed_is_read(domain: u32, bus: u8, device in 0..32_u8, function in 0..8_u8) {
            let address = Address { domain, bus, device, function };
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }

        #[test]
        fn any_text_is_an_address_or_is_refused(text in "[0-9a-fg:.+ -]{0,16}") {
            if let Ok(address) = text.parse::<Address>() {
                let printed = address.to_string();
                prop_assert_eq!(printed.parse(), Ok(address));
                prop_assert!(address.device < 32 && address.function < 8, "{}", printed);
            }
        }
    }

    #[test]
    fn the_domain_may_be_left_out() {
        let address = Address { domain: 0, bus: 3, device: 0x1f, function: 7 };
        assert_eq!("03:1f.7".parse(), Ok(address));
        assert_eq!("0000:03:1F.7".parse(), Ok(address));
        assert_eq!("10000:03:1f.7".parse(), Ok(Address { domain: 0x10000, ..address }));
        for wrong in ["", "03", "03:00", "03:00.8", "03:20.0", "3:0.0", "+3:00.0", "0:0:03:00.0"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
