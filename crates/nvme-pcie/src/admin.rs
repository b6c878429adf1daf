//! The admin queue: one command after the other or several at a time, each a future on the controller's thread ([`crate::tasks`]).
//!
//! The data of a command are pages of its own, mapped for the device while it has them. A command that is not answered in time leaves its slot and its
//! pages with the device; they come back when the controller has been disabled and this is dropped.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nvme::{Cqe, Sqe, Status};

use crate::Pages;
use crate::function::{Function, Mapping, OWN_IOVA};
use crate::pages::PAGE_SIZE;
use crate::pointers::Own;
use crate::queue_pair::{QueuePair, Shape};
use crate::seat::Identifiers;
use crate::tasks::Time;

/// Commands that may be outstanding.
pub(crate) const SLOTS: u16 = 31;

/// How far apart the data of commands are, as the device sees them: more than one command can have.
const WINDOW: u64 = 4 << 20;

/// The most data of one command.
const DATA_MOST: usize = 1 << 20;

/// Where the queues are.
const QUEUES_IOVA: u64 = OWN_IOVA + 32 * WINDOW;

/// How soon to look again where no interrupt tells of completions.
const POLL: Duration = Duration::from_millis(1);

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// The controller refuses it, or failed.
    #[error("{0}")]
    Status(Status),
    /// It has not answered in time.
    #[error("no answer in {0:?}")]
    Timeout(Duration),
    /// Its data cannot be given to the controller.
    #[error("{0}")]
    Data(String),
    /// The controller is being reset, or is not there.
    #[error("the controller is not in service")]
    NotInService,
}

/// The data of a command.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Data<'a> {
    None,
    /// So many bytes come from the controller.
    In(usize),
    /// These go to it.
    Out(&'a [u8]),
}

/// What a controller says to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The completion. Within the driver its status is success; to others that ask for a command it may be any.
    pub completion: Cqe,
    /// What the controller sent.
    pub data: Vec<u8>,
}

#[derive(Debug, Default)]
struct Slot {
    uses: u16,
    cid: Option<u16>,
    answer: Option<Cqe>,
    /// Nobody waits for it any more.
    forsaken: bool,
    pages: Option<Arc<Pages>>,
}

#[derive(Debug)]
struct Inner {
    pair: QueuePair,
    slots: Vec<Slot>,
    strays: u64,
}

/// The admin queue of one session.
#[derive(Debug)]
pub(crate) struct Admin {
    function: Arc<dyn Function>,
    time: Rc<Time>,
    timeout: Duration,
    /// Interrupts tell of completions.
    interrupts: bool,
    /// Bytes that the controller takes at a time.
    most: usize,
    inner: RefCell<Inner>,
    queues: Arc<Pages>,
}

impl Admin {
    /// A new admin queue, whose memory the device reaches; the registers are still to be told.
    pub(crate) fn new(
        function: &Arc<dyn Function>,
        time: &Rc<Time>,
        timeout: Duration,
        (stride, queue_entries): (u8, u32),
    ) -> std::io::Result<Admin> {
        let shape = Shape::new(SLOTS, queue_entries.min(4096));
        let queues = Arc::new(Pages::new(shape.bytes(), QUEUES_IOVA)?);
        function.map(Mapping::pages(&queues))?;
        let pair = QueuePair::new(function, &queues, 0, shape, stride, None);
        let slots = (0..pair.slots()).map(|_| Slot::default()).collect();
        Ok(Admin {
            function: Arc::clone(function),
            time: Rc::clone(time),
            timeout,
            interrupts: function.vectors() > 0,
            most: DATA_MOST,
            inner: RefCell::new(Inner { pair, slots, strays: 0 }),
            queues,
        })
    }

    /// Entries and places of the two queues, for AQA, ASQ and ACQ.
    pub(crate) fn queues(&self) -> (Shape, u64, u64) {
        let shape = self.inner.borrow().pair.shape();
        let offset = u64::try_from(shape.completions_at()).unwrap_or(u64::MAX);
        (shape, self.queues.iova(), self.queues.iova().saturating_add(offset))
    }

    /// Takes no more data at a time from now on than the controller does.
    pub(crate) fn limit(&mut self, most: usize) {
        self.most = most.min(DATA_MOST);
    }

    /// Completions of commands that are not there.
    pub(crate) fn strays(&self) -> u64 {
        self.inner.borrow().strays
    }

    /// Takes in completions: at the beginning of every pass.
    pub(crate) fn poll(&self) {
        let mut inner = self.inner.borrow_mut();
        while let Some(completion) = inner.pair.next() {
            let cid = completion.cid.get();
            let slot = inner.slots.iter_mut().find(|slot| slot.cid == Some(cid));
            match slot {
                Some(slot) if slot.answer.is_none() => slot.answer = Some(completion),
                _ => inner.strays += 1,
            }
        }
        inner.pair.acknowledge(true);
        let forsaken = |slot: &&mut Slot| slot.forsaken && slot.answer.is_some();
        for slot in inner.slots.iter_mut().filter(forsaken) {
            self.release(slot);
        }
    }

    /// Has a command carried out, within the time that commands have.
    pub(crate) async fn command(&self, sqe: Sqe, data: Data<'_>) -> Result<Answer, AdminError> {
        self.command_within(Some(self.timeout), sqe, data).await
    }

    /// Has a command carried out; None: however long it takes.
    pub(crate) async fn command_within(
        &self,
        patience: Option<Duration>,
        sqe: Sqe,
        data: Data<'_>,
    ) -> Result<Answer, AdminError> {
        let answer = self.answer_within(patience, sqe, data).await?;
        answer.completion.status().into_result().map_err(AdminError::Status)?;
        Ok(answer)
    }

    /// The same; whatever the controller says is an answer.
    pub(crate) async fn answer_within(
        &self,
        patience: Option<Duration>,
        sqe: Sqe,
        data: Data<'_>,
    ) -> Result<Answer, AdminError> {
        let free = || self.inner.borrow().slots.iter().position(|slot| slot.cid.is_none());
        let Some(place) = self.time.wait(patience, free).await else {
            return Err(AdminError::Timeout(self.timeout));
        };
        let (sqe, pages) = self.bring(sqe, data, place)?;
        let cid = {
            let mut inner = self.inner.borrow_mut();
            let Some(slot) = inner.slots.get_mut(place) else {
                return Err(AdminError::NotInService);
            };
            slot.uses = slot.uses.wrapping_add(1);
            let cid = Identifiers::new(SLOTS).of(u16::try_from(place).unwrap_or(0), slot.uses);
            (slot.cid, slot.pages) = (Some(cid), pages.clone());
            inner.pair.push(&sqe.with_cid(cid));
            inner.pair.ring();
            cid
        };
        // If this future is dropped, nobody waits for the answer.
        let waiting = Waiting { admin: self, place, cid };
        let answer = || {
            if !self.interrupts && patience.is_some() {
                self.time.call_at(self.time.now() + POLL);
            }
            self.inner.borrow().slots.get(place)?.answer
        };
        let Some(completion) = self.time.wait(patience, answer).await else {
            return Err(AdminError::Timeout(patience.unwrap_or_default()));
        };
        let mut bytes = Vec::new();
        if let (Data::In(len), Some(pages)) = (data, &pages) {
            bytes.resize(len, 0);
            pages.get_bytes(0, &mut bytes);
        }
        drop(waiting);
        Ok(Answer { completion, data: bytes })
    }

    /// The command with its data where the device finds them.
    fn bring(
        &self,
        sqe: Sqe,
        data: Data<'_>,
        place: usize,
    ) -> Result<(Sqe, Option<Arc<Pages>>), AdminError> {
        let len = match data {
            Data::None | Data::In(0) | Data::Out([]) => return Ok((Sqe { flags: 0, ..sqe }, None)),
            Data::In(len) => len,
            Data::Out(bytes) => bytes.len(),
        };
        if len > self.most {
            let most = self.most;
            return Err(AdminError::Data(format!(
                "{len} bytes of data are too many: at most {most} at a time"
            )));
        }
        let refused = |error: std::io::Error| {
            AdminError::Data(format!("no memory for {len} bytes of data: {error}"))
        };
        let iova = OWN_IOVA + u64::try_from(place).unwrap_or(0) * WINDOW;
        // One page more, for the list of the others.
        let whole = len.next_multiple_of(PAGE_SIZE);
        let pages = Arc::new(Pages::new(whole + PAGE_SIZE, iova).map_err(refused)?);
        if let Data::Out(bytes) = data {
            pages.put_bytes(0, bytes);
        }
        self.function.map(Mapping::pages(&pages)).map_err(refused)?;
        let sqe = Own::new(&pages, whole).point_at_pages(Sqe { flags: 0, ..sqe }, iova, len);
        Ok((sqe, Some(pages)))
    }

    fn release(&self, slot: &mut Slot) {
        (slot.cid, slot.answer, slot.forsaken) = (None, None, false);
        if let Some(pages) = slot.pages.take() {
            self.function.unmap(pages.iova());
        }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        for slot in &self.inner.borrow().slots {
            if let Some(pages) = &slot.pages {
                self.function.unmap(pages.iova());
            }
        }
        self.function.unmap(self.queues.iova());
    }
}

/// Somebody waits for the answer to a command.
struct Waiting<'a> {
    admin: &'a Admin,
    place: usize,
    cid: u16,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut inner = self.admin.inner.borrow_mut();
        let Some(slot) = inner.slots.get_mut(self.place) else { return };
        if slot.cid != Some(self.cid) {
            return;
        }
        if slot.answer.is_some() {
            self.admin.release(slot);
        } else {
            slot.forsaken = true;
        }
    }
}
