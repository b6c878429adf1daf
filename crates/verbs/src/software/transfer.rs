//! What queue pairs do: one work request is started, finished or flushed at a time.

use super::bytes;
use super::world::{Pair, Phase, Pieces, Receive, Send, World};
use crate::completion::Status;
use crate::sys;

/// Whether a responder or requester may touch what it names.
fn allowed(world: &World, domain: u32, pieces: &Pieces, access: i32) -> bool {
    pieces
        .used()
        .iter()
        .all(|piece| reaches(world, domain, piece.lkey, piece.addr, piece.length.into(), access))
}

fn reaches(world: &World, domain: u32, key: u32, address: u64, length: u64, access: i32) -> bool {
    let Some(region) = world.regions.get(&key) else { return false };
    let inside = address.checked_sub(region.base).and_then(|offset| offset.checked_add(length));
    region.valid
        && world.protection(region.domain) == world.protection(domain)
        && region.access & access == access
        && inside.is_some_and(|end| end <= region.length)
}

/// Whether the peer has refused something that came later: that also says that it has done what came before.
fn answered(pair: &Pair) -> bool {
    let refusals =
        [Status::REMOTE_INVALID_REQUEST, Status::REMOTE_ACCESS, Status::REMOTE_OPERATION];
    let refused = |send: &Send| matches!(send.phase, Phase::Failed(status) if refusals.contains(&Status(status)));
    pair.sends.iter().any(refused)
}

impl Pair {
    /// Whether the oldest send could end.
    pub(crate) fn can_finish(&self) -> bool {
        self.state == sys::QPS_RTS && self.started > 0 && !self.faults.held
    }

    /// Whether something of a queue pair in error is to be flushed, or its last event to be told.
    pub(crate) fn can_flush(&self) -> bool {
        self.state == sys::QPS_ERR && self.has_work() && !self.faults.held
    }

    /// Whether there is anything to be done, now or when something else has changed.
    pub(crate) fn has_work(&self) -> bool {
        let flushes = !self.receives.is_empty() || self.last_wqe_untold();
        !self.sends.is_empty() || self.state == sys::QPS_ERR && flushes
    }

    fn last_wqe_untold(&self) -> bool {
        self.shared.is_some() && !self.last_wqe_told
    }
}

/// What becomes of an attempt.
enum Outcome {
    Sent,
    Again,
    Failed(Status),
}

impl World {
    /// Puts a completion where it belongs; a queue that overflows takes all its queue pairs down.
    fn complete(&mut self, queue: u32, wc: sys::Wc, covers: u32) {
        let Some(cq) = self.completion_queues.get_mut(&queue) else { return };
        if cq.broken {
            return;
        }
        if cq.entries.len() >= cq.capacity {
            cq.broken = true;
            let (context, address) = (cq.context, cq.address);
            self.report(context, sys::EVENT_CQ_ERR, address);
            let ends = |pair: &Pair| pair.send_queue == queue || pair.receive_queue == queue;
            let pairs = self.pairs.iter().filter(|(_, pair)| ends(pair)).map(|(&number, _)| number);
            for number in pairs.collect::<Vec<_>>() {
                self.fail_pair(number);
            }
            return;
        }
        cq.entries.push_back((wc, covers));
        if cq.armed {
            cq.armed = false;
            let address = cq.address;
            let channel = cq.channel.and_then(|channel| self.completion_channels.get_mut(&channel));
            if let Some(channel) = channel {
                channel.notices.push(address);
            }
        }
    }

    /// The queue pair is in error from now on; what is posted is flushed step by step.
    pub(crate) fn fail_pair(&mut self, number: u32) {
        let Some(pair) = self.pairs.get_mut(&number) else { return };
        if pair.state == sys::QPS_RESET {
            return;
        }
        pair.state = sys::QPS_ERR;
        self.busy_pairs.add(number);
        let (reads, peer) = (pair.reads_out, pair.peer);
        pair.reads_out = 0;
        if let Some(peer) = self.pairs.get_mut(&peer) {
            peer.reads_in = peer.reads_in.saturating_sub(reads);
        }
    }

    /// Ends the oldest send.
    fn end(&mut self, number: u32, status: Status) {
        let Some(pair) = self.pairs.get_mut(&number) else { return };
        let Some(send) = pair.sends.pop_front() else { return };
        pair.started = pair.started.saturating_sub(1);
        if status == Status::SUCCESS && send.flags & sys::SEND_SIGNALED == 0 {
            pair.silent += 1;
            return;
        }
        let covers = pair.silent + 1;
        pair.silent = 0;
        if status != Status::SUCCESS {
            // Only the first that ends in error has a reason of its own; whatever comes after it is flushed.
            pair.sends.iter_mut().for_each(|later| later.phase = Phase::Queued);
        }
        let opcode = match send.opcode {
            sys::WR_RDMA_WRITE => sys::WC_RDMA_WRITE,
            sys::WR_RDMA_READ => sys::WC_RDMA_READ,
            _ => sys::WC_SEND,
        };
        let byte_len = u32::try_from(send.pieces.length()).unwrap_or(u32::MAX);
        // As the specification has it, an error leaves everything else undefined.
        let opcode = if status == Status::SUCCESS { opcode } else { 0xDEAD };
        let wc = sys::Wc {
            wr_id: send.wr_id,
            status: status.0,
            opcode,
            byte_len,
            qp_num: number,
            ..sys::Wc::default()
        };
        let queue = pair.send_queue;
        self.complete(queue, wc, covers);
    }

    /// Whether the next send of this queue pair could be tried.
    pub(crate) fn can_start(&self, pair: &Pair) -> bool {
        let Some(send) = pair.sends.get(pair.started) else { return false };
        if pair.state != sys::QPS_RTS || pair.faults.held {
            return false;
        }
        if pair.sends.iter().take(pair.started).any(|send| matches!(send.phase, Phase::Failed(_))) {
            return false;
        }
        let is_read = send.opcode == sys::WR_RDMA_READ;
        if is_read && pair.reads_out >= pair.max_reads_out && pair.max_reads_out > 0 {
            return false;
        }
        if send.flags & sys::SEND_FENCE != 0 && pair.reads_out > 0 {
            return false;
        }
        let message = matches!(send.opcode, sys::WR_SEND | sys::WR_SEND_WITH_INV);
        // Where it is tried for ever and nothing but a receive would help, it waits without costing steps.
        !(message && pair.rnr_retries == 7 && self.reachable(pair) && self.starves(pair))
    }

    /// Whether the peer has no receive for it, a passing mood aside.
    fn starves(&self, pair: &Pair) -> bool {
        let moody = self.pairs.get(&pair.peer).is_some_and(|peer| peer.faults.not_ready > 0);
        !moody && !self.ready(pair)
    }

    fn reachable(&self, pair: &Pair) -> bool {
        let up = |device: usize| {
            self.devices.get(device).is_some_and(|device| device.port_up && !device.removed)
        };
        let peer = self.pairs.get(&pair.peer);
        let listens = |peer: &Pair| {
            matches!(peer.state, sys::QPS_RTR | sys::QPS_RTS) && !peer.faults.cut && up(peer.device)
        };
        !pair.faults.cut && up(pair.device) && peer.is_some_and(listens)
    }

    /// Whether the peer has a receive for it.
    fn ready(&self, pair: &Pair) -> bool {
        let Some(peer) = self.pairs.get(&pair.peer) else { return false };
        if peer.faults.not_ready > 0 {
            return false;
        }
        match peer.shared {
            Some(shared) => {
                self.shared_receives.get(&shared).is_some_and(|srq| !srq.queue.is_empty())
            }
            None => !peer.receives.is_empty(),
        }
    }

    /// Tries the next send.
    pub(crate) fn start(&mut self, number: u32) {
        let Some(pair) = self.pairs.get_mut(&number) else { return };
        let Some(mut send) = pair.sends.get(pair.started).copied() else { return };
        let outcome = match pair.faults.fail_next.take() {
            Some(status) => Outcome::Failed(Status(status)),
            None => self.attempt(number, &send),
        };
        let Some(pair) = self.pairs.get_mut(&number) else { return };
        send.phase = match outcome {
            Outcome::Again => return,
            Outcome::Sent => Phase::Sent,
            Outcome::Failed(status) => Phase::Failed(status.0),
        };
        if send.opcode == sys::WR_RDMA_READ && send.phase == Phase::Sent {
            pair.reads_out += 1;
        }
        let started = pair.started;
        if let Some(place) = pair.sends.get_mut(started) {
            place.phase = send.phase;
        }
        pair.started += 1;
        (pair.retries_left, pair.rnr_left) = (pair.retries, pair.rnr_retries);
    }

    fn attempt(&mut self, number: u32, send: &Send) -> Outcome {
        let Some(pair) = self.pairs.get(&number) else { return Outcome::Again };
        let is_read = send.opcode == sys::WR_RDMA_READ;
        let access = if is_read { sys::ACCESS_LOCAL_WRITE } else { 0 };
        if !send.is_inline() && !allowed(self, pair.domain, &send.pieces, access) {
            return Outcome::Failed(Status::LOCAL_PROTECTION);
        }
        if is_read && pair.max_reads_out == 0 {
            return Outcome::Failed(Status::LOCAL_QP_OPERATION);
        }
        if !self.reachable(pair) {
            return self.retry(number);
        }
        let peer = pair.peer;
        match send.opcode {
            sys::WR_SEND | sys::WR_SEND_WITH_INV => {
                if self.ready(pair) {
                    self.deliver(peer, send)
                } else {
                    self.retry_not_ready(number)
                }
            }
            sys::WR_RDMA_WRITE => self.write(peer, send),
            sys::WR_RDMA_READ => self.ask(peer, send),
            _ => Outcome::Failed(Status::LOCAL_QP_OPERATION),
        }
    }

    fn retry(&mut self, number: u32) -> Outcome {
        let Some(pair) = self.pairs.get_mut(&number) else { return Outcome::Again };
        match pair.retries_left.checked_sub(1) {
            Some(left) => pair.retries_left = left,
            None => return Outcome::Failed(Status::RETRY_EXCEEDED),
        }
        Outcome::Again
    }

    fn retry_not_ready(&mut self, number: u32) -> Outcome {
        self.not_ready += 1;
        let Some(pair) = self.pairs.get_mut(&number) else { return Outcome::Again };
        let (peer, for_ever) = (pair.peer, pair.rnr_retries == 7);
        match pair.rnr_left.checked_sub(1) {
            _ if for_ever => {}
            Some(left) => pair.rnr_left = left,
            None => return Outcome::Failed(Status::RNR_RETRY_EXCEEDED),
        }
        if let Some(peer) = self.pairs.get_mut(&peer) {
            peer.faults.not_ready = peer.faults.not_ready.saturating_sub(1);
        }
        Outcome::Again
    }

    /// Takes the receive that is next in the queue pair's turn.
    fn take_receive(&mut self, number: u32) -> Option<Receive> {
        let pair = self.pairs.get_mut(&number)?;
        let Some(shared) = pair.shared else { return pair.receives.pop_front() };
        let srq = self.shared_receives.get_mut(&shared)?;
        let receive = srq.queue.pop_front()?;
        if srq.queue.len() < srq.limit {
            srq.limit = 0;
            let (context, address) = (srq.context, srq.address);
            self.report(context, sys::EVENT_SRQ_LIMIT_REACHED, address);
        }
        Some(receive)
    }

    /// A message arrives at `number`.
    fn deliver(&mut self, number: u32, send: &Send) -> Outcome {
        let Some(receive) = self.take_receive(number) else { return Outcome::Again };
        let Some(pair) = self.pairs.get(&number) else { return Outcome::Again };
        let (queue, domain, state) = (pair.receive_queue, pair.domain, pair.state);
        let (context, address) = (pair.context, pair.address);
        // A shared queue's receives belong to its own domain.
        let domain = pair
            .shared
            .and_then(|shared| self.shared_receives.get(&shared))
            .map_or(domain, |srq| srq.domain);
        let invalidates = (send.opcode == sys::WR_SEND_WITH_INV).then_some(send.key);
        let byte_len = u32::try_from(send.pieces.length()).unwrap_or(u32::MAX);
        let mut wc = sys::Wc {
            wr_id: receive.wr_id,
            opcode: sys::WC_RECV,
            byte_len,
            qp_num: number,
            ..sys::Wc::default()
        };
        let fits = send.pieces.length() <= receive.pieces.length();
        let (local, remote) = if !fits {
            (Status::LOCAL_LENGTH, Status::REMOTE_INVALID_REQUEST)
        } else if !allowed(self, domain, &receive.pieces, sys::ACCESS_LOCAL_WRITE) {
            (Status::LOCAL_PROTECTION, Status::REMOTE_OPERATION)
        } else if invalidates.is_some_and(|key| !self.invalidate(domain, key)) {
            (Status::LOCAL_ACCESS, Status::REMOTE_ACCESS)
        } else {
            bytes::transfer(send, &receive.pieces);
            (Status::SUCCESS, Status::SUCCESS)
        };
        if let Some(key) = invalidates {
            (wc.wc_flags, wc.invalidated_rkey) = (sys::WC_WITH_INV, key);
        }
        wc.status = local.0;
        self.complete(queue, wc, 0);
        if local == Status::SUCCESS {
            if state == sys::QPS_RTR {
                self.report(context, sys::EVENT_COMM_EST, address);
            }
            return Outcome::Sent;
        }
        self.fail_pair(number);
        Outcome::Failed(remote)
    }

    /// Takes a key out of use, as a peer's SEND_WITH_INV does.
    fn invalidate(&mut self, domain: u32, key: u32) -> bool {
        let domain = self.protection(domain);
        let region = self.regions.get_mut(&key);
        let Some(region) = region.filter(|region| region.domain == domain && region.valid) else {
            return false;
        };
        region.valid = false;
        true
    }

    /// Looks whether the peer's memory may be reached; if not, its queue pair breaks.
    fn remote_access(&mut self, number: u32, send: &Send, access: i32) -> Result<(), Status> {
        let Some(pair) = self.pairs.get(&number) else { return Err(Status::RETRY_EXCEEDED) };
        if i64::from(pair.access) & i64::from(access) == 0 {
            let (context, address) = (pair.context, pair.address);
            self.report(context, sys::EVENT_QP_REQ_ERR, address);
            self.fail_pair(number);
            return Err(Status::REMOTE_INVALID_REQUEST);
        }
        let length = send.pieces.length();
        if length == 0 || reaches(self, pair.domain, send.key, send.remote, length, access) {
            return Ok(());
        }
        let (context, address) = (pair.context, pair.address);
        self.report(context, sys::EVENT_QP_ACCESS_ERR, address);
        self.fail_pair(number);
        Err(Status::REMOTE_ACCESS)
    }

    fn write(&mut self, number: u32, send: &Send) -> Outcome {
        if let Err(status) = self.remote_access(number, send, sys::ACCESS_REMOTE_WRITE) {
            return Outcome::Failed(status);
        }
        bytes::transfer(send, &send.at_remote());
        Outcome::Sent
    }

    /// The request of an RDMA read arrives.
    fn ask(&mut self, number: u32, send: &Send) -> Outcome {
        if let Err(status) = self.remote_access(number, send, sys::ACCESS_REMOTE_READ) {
            return Outcome::Failed(status);
        }
        let Some(peer) = self.pairs.get_mut(&number) else { return Outcome::Again };
        if peer.reads_in >= peer.max_reads_in {
            let (context, address) = (peer.context, peer.address);
            self.report(context, sys::EVENT_QP_REQ_ERR, address);
            self.fail_pair(number);
            return Outcome::Failed(Status::REMOTE_INVALID_REQUEST);
        }
        peer.reads_in += 1;
        Outcome::Sent
    }

    /// The oldest send ends: the acknowledgement or the data read arrives, or it never will.
    pub(crate) fn finish(&mut self, number: u32) {
        let Some(pair) = self.pairs.get_mut(&number) else { return };
        let Some(send) = pair.sends.front().copied() else { return };
        let (domain, peer) = (pair.domain, pair.peer);
        let is_read = send.opcode == sys::WR_RDMA_READ;
        if is_read && send.phase == Phase::Sent {
            pair.reads_out = pair.reads_out.saturating_sub(1);
            if let Some(peer) = self.pairs.get_mut(&peer) {
                peer.reads_in = peer.reads_in.saturating_sub(1);
            }
        }
        let lost =
            self.pairs.get(&number).is_none_or(|pair| !self.reachable(pair) && !answered(pair));
        let status = match send.phase {
            Phase::Failed(status) => Status(status),
            // What was there when it was asked for may be gone by now.
            Phase::Sent if is_read => {
                match self.remote_access(peer, &send, sys::ACCESS_REMOTE_READ) {
                    _ if lost => Status::RETRY_EXCEEDED,
                    Err(status) => status,
                    Ok(()) if !allowed(self, domain, &send.pieces, sys::ACCESS_LOCAL_WRITE) => {
                        Status::LOCAL_PROTECTION
                    }
                    Ok(()) => {
                        bytes::copy(&send.at_remote(), &send.pieces);
                        Status::SUCCESS
                    }
                }
            }
            _ if lost => Status::RETRY_EXCEEDED,
            _ => Status::SUCCESS,
        };
        self.end(number, status);
        if status != Status::SUCCESS {
            self.fail_pair(number);
        }
    }

    pub(crate) fn flush(&mut self, number: u32) {
        let told = self.random.below(2) == 0;
        let Some(pair) = self.pairs.get_mut(&number) else { return };
        if pair.last_wqe_untold() && (told || pair.sends.is_empty()) {
            pair.last_wqe_told = true;
            let (context, address) = (pair.context, pair.address);
            self.report(context, sys::EVENT_QP_LAST_WQE_REACHED, address);
        } else if let Some(send) = pair.sends.front() {
            let status = match send.phase {
                Phase::Failed(status) => Status(status),
                _ => Status::FLUSHED,
            };
            self.end(number, status);
        } else if let Some(receive) = pair.receives.pop_front() {
            let queue = pair.receive_queue;
            let wc = sys::Wc {
                wr_id: receive.wr_id,
                status: Status::FLUSHED.0,
                opcode: 0xDEAD,
                qp_num: number,
                ..sys::Wc::default()
            };
            self.complete(queue, wc, 0);
        }
    }
}
