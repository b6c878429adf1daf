//! The one macro behind every enumeration of code values in this crate.
//!
//! NVMe numbers things: opcodes, log pages, features, transports. A value that arrived may be one
//! that is not listed here, so the conversion is fallible and gives the raw value back.

/// Declares an enumeration of `u8` codes: the variants, `TryFrom<u8>` (the error is the value
/// itself), `From<Self> for u8`, and `name()` / `Display` with the specification's name.
macro_rules! codes {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $( $(#[$variant_meta:meta])* $variant:ident = $value:literal, $text:literal; )+
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name {
            $( $(#[$variant_meta])* #[doc = $text] $variant = $value, )+
        }

        impl $name {
            /// Every value known here, in the order of the codes.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )+ ];

            /// The name that the specification gives to this value.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $text, )+ }
            }

            /// The value on the wire.
            pub const fn code(self) -> u8 {
                match self { $( Self::$variant => $value, )+ }
            }
        }

        impl TryFrom<u8> for $name {
            type Error = u8;

            fn try_from(value: u8) -> Result<Self, u8> {
                match value {
                    $( $value => Ok(Self::$variant), )+
                    other => Err(other),
                }
            }
        }

        impl From<$name> for u8 {
            fn from(value: $name) -> u8 {
                value.code()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

/// Fixes the size of a wire structure and the offsets of its fields at compile time.
macro_rules! layout {
    ($name:ty, $size:expr $(, $field:ident @ $offset:expr)* $(,)?) => {
        const _: () = assert!(core::mem::size_of::<$name>() == $size);
        const _: () = assert!(core::mem::align_of::<$name>() == 1);
        $( const _: () = assert!(core::mem::offset_of!($name, $field) == $offset); )*
    };
}

/// The derives that every wire structure has: plain bytes, any alignment, zero by default.
macro_rules! wire {
    ($(#[$meta:meta])* pub struct $name:ident { $($body:tt)* }) => {
        $(#[$meta])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout,
            zerocopy::Immutable, zerocopy::Unaligned,
        )]
        #[repr(C)]
        pub struct $name { $($body)* }

        impl Default for $name {
            /// All bytes zero.
            fn default() -> Self {
                zerocopy::FromZeros::new_zeroed()
            }
        }
    };
}

pub(crate) use {codes, layout, wire};
