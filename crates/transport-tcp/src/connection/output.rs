//! What a connection has to send, and how it becomes PDUs.
//!
//! The target's answers wait as short entries; they become PDUs only when a batch is put together
//! for the socket. So what an answer costs while the peer does not read is its entry, and the
//! entries are as many as the commands that the target admits on the queue.

use std::collections::VecDeque;

use nvme::Cqe;
use nvme::tcp::{CapsuleResp, Flags, R2t, Termination};
use target::{Lease, RequestId};
use zerocopy::IntoBytes;

use super::batch::{Batch, Data};
use super::negotiate::Terms;
use super::{Core, Turn};
use crate::config::SuccessFlag;

/// Commands of a connection whose data is copied at a time because writes wait for it: a turn is bounded.
const GIVEN_BACK_AT_ONCE: u32 = 8;

/// Something to send.
#[derive(Debug)]
pub(crate) enum Entry {
    /// `ICResp`.
    Agreement,
    /// R2T for all the data of a command.
    Request { ttag: u16, cid: u16, length: u32 },
    /// The answer to a command: `data` bytes, of which `sent` are in a batch already, then `cqe`.
    Response { request: RequestId, cqe: Cqe, data: u32, sent: u32, flow_control: bool },
    /// `C2HTermReq`: the last PDU.
    Termination(Box<Termination>),
}

/// The send queue and the batch that the socket is taking.
#[derive(Debug, Default)]
pub(crate) struct Output {
    queue: VecDeque<Entry>,
    batch: Option<Box<Batch>>,
}

/// The target did not have the data of a response.
#[derive(Debug)]
pub(crate) struct NoData;

impl Output {
    pub(crate) fn push(&mut self, entry: Entry) {
        self.queue.push_back(entry);
    }

    /// Whether nothing is left to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.batch.is_none()
    }

    /// Forgets what has not begun to be sent. A PDU that the peer has part of is finished.
    pub(crate) fn abandon<C: Core>(&mut self, turn: &mut Turn<'_, C>) {
        self.queue.clear();
        if let Some(batch) = self.batch.take() {
            if batch.is_begun() {
                self.batch = Some(batch);
            } else {
                turn.buffers.give_batch(batch);
            }
        }
    }

    /// Ends all loans.
    pub(crate) fn release<C: Core>(&mut self, turn: &mut Turn<'_, C>) {
        self.queue.clear();
        if let Some(batch) = self.batch.take() {
            turn.buffers.give_batch(batch);
        }
    }

    /// The batch to send from now: the one that is not through, or a new one of what has queued up.
    pub(crate) fn batch<C: Core>(
        &mut self,
        terms: &Terms,
        turn: &mut Turn<'_, C>,
    ) -> Result<Option<&Batch>, NoData> {
        if self.batch.is_none() && !self.queue.is_empty() {
            let mut batch = turn.buffers.take_batch();
            batch.begin(turn.now);
            let filled = self.fill(&mut batch, terms, turn);
            self.batch = Some(batch);
            filled?;
        }
        Ok(self.batch.as_deref())
    }

    /// The batch that the socket has begun to take, if any.
    pub(crate) fn current(&self) -> Option<&Batch> {
        self.batch.as_deref()
    }

    /// The socket has taken `count` bytes of the batch. `open`: the target still knows the queue.
    pub(crate) fn sent<C: Core>(&mut self, count: usize, open: bool, turn: &mut Turn<'_, C>) {
        let Some(batch) = &mut self.batch else { return };
        turn.counters.bytes_sent.add_len(count);
        batch.advance(count, |request| {
            if open {
                turn.core.response_sent(request);
            }
        });
        if batch.is_sent() {
            turn.counters.pdus_sent.add(batch.pdus());
            if let Some(batch) = self.batch.take() {
                turn.buffers.give_batch(batch);
            }
        }
    }

    /// The peer has not taken what is in the batch. Has the target copy what writes wait for of all that was lent for this
    /// connection, some at a time; whether anything lent is left. `None`: nothing waits for the peer.
    pub(crate) fn give_back<C: Core>(&mut self, turn: &mut Turn<'_, C>) -> Option<bool> {
        let batch = self.batch.as_deref_mut()?;
        let (mut given, mut kept) = (0, false);
        let queued = self.queue.iter().filter_map(|entry| match entry {
            Entry::Response { request, data: 1.., .. } => Some(*request),
            _ => None,
        });
        for request in batch.requests().chain(queued) {
            match turn.core.give_back(request) {
                Lease::None => {}
                Lease::Kept => kept = true,
                Lease::GivenBack => given += 1,
            }
            if given == GIVEN_BACK_AT_ONCE {
                kept = true;
                break;
            }
        }
        for part in batch.wanted() {
            let length = u32::try_from(part.segment.len()).unwrap_or(u32::MAX);
            if let Some(segment) = turn.core.segment(part.request, part.offset, length) {
                part.segment = segment;
            }
        }
        Some(kept)
    }

    fn fill<C: Core>(
        &mut self,
        batch: &mut Batch,
        terms: &Terms,
        turn: &mut Turn<'_, C>,
    ) -> Result<(), NoData> {
        let header_digest = terms.rules.header_digest;
        let padding = terms.padding();
        while batch.has_room()
            && let Some(entry) = self.queue.front_mut()
        {
            match entry {
                Entry::Agreement => batch.header(terms.response().as_bytes(), false),
                Entry::Request { ttag, cid, length } => {
                    let pdu = R2t::new(*cid, *ttag, 0, *length, terms.flags());
                    batch.header(pdu.as_bytes(), header_digest);
                }
                Entry::Termination(termination) => {
                    let [header, copy] = termination.parts();
                    batch.header(header, false);
                    batch.bytes(copy);
                }
                Entry::Response { request, cqe, data, sent, flow_control } => {
                    let silent = *data > 0 && may_be_silent(turn, cqe, *flow_control);
                    if *sent < *data {
                        let left = *data - *sent;
                        let length = left.min(turn.config.max_c2h_data);
                        let last = length == left;
                        let mut ending = Flags::empty();
                        ending.set(Flags::LAST, last);
                        ending.set(Flags::SUCCESS, last && silent);
                        let segment = turn.core.segment(*request, *sent, length).ok_or(NoData)?;
                        let pdu = terms.data(cqe.cid.get(), *sent, length, ending);
                        batch.header(pdu.as_bytes(), header_digest);
                        if padding > 0 {
                            batch.padding(padding);
                        }
                        let (request, offset) = (*request, *sent);
                        let data = Data { segment, request, offset };
                        if !batch.data(data, terms.rules.data_digest) {
                            return Err(NoData);
                        }
                        *sent = sent.saturating_add(length);
                        if !last {
                            continue;
                        }
                    }
                    if !silent {
                        let pdu = CapsuleResp::new(*cqe, terms.flags());
                        batch.header(pdu.as_bytes(), header_digest);
                    }
                    batch.end(*request);
                }
            }
            self.queue.pop_front();
        }
        Ok(())
    }
}

/// Whether the SUCCESS flag may stand for this completion: it says a status and a result of zero.
fn may_be_silent<C: Core>(turn: &Turn<'_, C>, cqe: &Cqe, flow_control: bool) -> bool {
    let allowed = match turn.config.success_flag {
        SuccessFlag::Always => true,
        SuccessFlag::Strict => !flow_control,
        SuccessFlag::Never => false,
    };
    allowed && cqe.status().is_success() && cqe.result.get() == 0
}
