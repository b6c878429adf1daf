//! What has to be remembered of each block operation that is out, so that it can be counted when it comes back.
//!
//! By the place that its token names, request slot and part: a command of one operation, as nearly all are, touches one
//! entry, and a command that has none touches nothing. In the [`Request`](super::request::Request) itself the sixteen
//! parts would be written and copied with every command.

use block::{Kind, Token};

use super::request::{self, MAX_PARTS};
use crate::Instant;
use crate::statistics::Class;

/// An operation that is out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Started {
    /// The turn in which it was submitted.
    pub(crate) at: Instant,
    pub(crate) class: Class,
    pub(crate) blocks: u32,
}

/// A place for every operation that can be out.
#[derive(Debug)]
pub(crate) struct Outstanding(Box<[Started]>);

impl Outstanding {
    /// For so many requests.
    pub(crate) fn new(requests: u32) -> Self {
        let places = (requests as usize).saturating_mul(MAX_PARTS as usize);
        let none = Started { at: Instant::ZERO, class: Class::Read, blocks: 0 };
        Self(vec![none; places].into_boxed_slice())
    }

    /// This operation goes out now.
    pub(crate) fn note(&mut self, token: Token, kind: Kind, blocks: u64, at: Instant) {
        if let Some(place) = self.0.get_mut(request::place(token)) {
            // A command's range has fewer than 2^32 blocks.
            let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
            *place = Started { at, class: kind.into(), blocks };
        }
    }

    /// What was noted of the operation with this token.
    pub(crate) fn get(&self, token: Token) -> Option<Started> {
        self.0.get(request::place(token)).copied()
    }
}
