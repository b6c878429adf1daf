//! Namespace Identification Descriptors (CNS 03h): by which names a namespace is known everywhere.

use super::{Csi, IDENTIFY_LENGTH};
use crate::codes::{codes, layout, wire};
use uuid::Uuid;

codes! {
    /// Namespace Identifier Type (NIDT).
    pub enum DescriptorType {
        Eui64 = 0x01, "IEEE Extended Unique Identifier";
        Nguid = 0x02, "Namespace Globally Unique Identifier";
        Uuid = 0x03, "Namespace UUID";
        Csi = 0x04, "Command Set Identifier";
    }
}

wire! {
    /// What a descriptor begins with; `nidl` bytes of identifier follow.
    pub struct DescriptorHeader {
        /// Namespace Identifier Type (NIDT); 0 ends the list.
        pub nidt: u8,
        /// Namespace Identifier Length (NIDL) in bytes.
        pub nidl: u8,
        /// Reserved.
        pub reserved2: [u8; 2],
    }
}
layout!(DescriptorHeader, 4, nidt @ 0, nidl @ 1);

/// One name of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Descriptor {
    /// EUI64, first byte first.
    Eui64([u8; 8]),
    /// NGUID, first byte first.
    Nguid([u8; 16]),
    /// UUID.
    Uuid(Uuid),
    /// Command set of the namespace.
    Csi(Csi),
}

/// Builds the 4,096 bytes of the list.
#[derive(Debug, Clone)]
pub struct DescriptorWriter {
    bytes: [u8; IDENTIFY_LENGTH],
    used: usize,
}

impl Default for DescriptorWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl DescriptorWriter {
    /// An empty list.
    pub const fn new() -> Self {
        Self { bytes: [0; IDENTIFY_LENGTH], used: 0 }
    }

    /// Adds a name. An EUI64, NGUID or UUID of zeroes is no name and is left out: hosts refuse it
    /// or take all such namespaces for one. What does not fit is left out as well.
    pub fn push(&mut self, descriptor: Descriptor) {
        match descriptor {
            Descriptor::Eui64(id) if id != [0; 8] => self.put(DescriptorType::Eui64, 8, &id),
            Descriptor::Nguid(id) if id != [0; 16] => self.put(DescriptorType::Nguid, 16, &id),
            Descriptor::Uuid(id) if !id.is_nil() => {
                self.put(DescriptorType::Uuid, 16, id.as_bytes());
            }
            Descriptor::Csi(csi) => self.put(DescriptorType::Csi, 1, &[csi.code()]),
            Descriptor::Eui64(_) | Descriptor::Nguid(_) | Descriptor::Uuid(_) => {}
        }
    }

    fn put(&mut self, kind: DescriptorType, length: u8, id: &[u8]) {
        let end = self.used.saturating_add(4).saturating_add(id.len());
        let Some(place) = self.bytes.get_mut(self.used..end) else {
            return;
        };
        let header = [kind.code(), length, 0, 0];
        for (to, from) in place.iter_mut().zip(header.iter().chain(id)) {
            *to = *from;
        }
        self.used = end;
    }

    /// The list.
    pub const fn bytes(&self) -> &[u8; IDENTIFY_LENGTH] {
        &self.bytes
    }
}

/// Reads the names in a list. Ends at type 0 and at a descriptor that reaches beyond the end; skips
/// types that are not known and those whose length is wrong.
#[derive(Debug, Clone)]
pub struct Descriptors<'a> {
    rest: &'a [u8],
}

impl<'a> Descriptors<'a> {
    /// The names in this list.
    pub const fn new(list: &'a [u8]) -> Self {
        Self { rest: list }
    }
}

impl Iterator for Descriptors<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        loop {
            let (&[nidt, nidl, _, _], rest) = self.rest.split_first_chunk()?;
            if nidt == 0 {
                self.rest = &[];
                return None;
            }
            let (id, rest) = rest.split_at_checked(usize::from(nidl))?;
            self.rest = rest;
            let descriptor = match DescriptorType::try_from(nidt) {
                Ok(DescriptorType::Eui64) => id.try_into().ok().map(Descriptor::Eui64),
                Ok(DescriptorType::Nguid) => id.try_into().ok().map(Descriptor::Nguid),
                Ok(DescriptorType::Uuid) => Uuid::from_slice(id).ok().map(Descriptor::Uuid),
                Ok(DescriptorType::Csi) => match id {
                    [csi] => Csi::try_from(*csi).ok().map(Descriptor::Csi),
                    _ => None,
                },
                Err(_) => None,
            };
            if descriptor.is_some() {
                return descriptor;
            }
        }
    }
}
