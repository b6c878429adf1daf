//! Completion queues, what they hold, and the channels on which one sleeps until there is something.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::error::{check, check_ready, last, let_go};
use crate::work::WorkId;
use crate::{Device, VerbsError, sys};

/// How a work request ended; the numbers are those of libibverbs.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub u32);

macro_rules! statuses {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        impl Status {
            $(#[doc = $text] pub const $name: Status = Status($value);)*

            /// What it means.
            pub fn text(self) -> &'static str {
                match self.0 { $($value => $text,)* _ => "unknown status" }
            }
        }
    };
}

statuses! {
    SUCCESS = 0, "success";
    LOCAL_LENGTH = 1, "local length error";
    LOCAL_QP_OPERATION = 2, "local queue pair operation error";
    LOCAL_PROTECTION = 4, "local protection error";
    FLUSHED = 5, "flushed";
    BAD_RESPONSE = 7, "bad response";
    LOCAL_ACCESS = 8, "local access error";
    REMOTE_INVALID_REQUEST = 9, "remote invalid request";
    REMOTE_ACCESS = 10, "remote access error";
    REMOTE_OPERATION = 11, "remote operation error";
    RETRY_EXCEEDED = 12, "transport retries exhausted";
    RNR_RETRY_EXCEEDED = 13, "receiver-not-ready retries exhausted";
    FATAL = 19, "fatal error";
    GENERAL = 21, "general error";
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text(), self.0)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// One completion, exactly as the device's driver wrote it.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub struct Completion(sys::Wc);

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_receive() { "receive" } else { "send" };
        let mut debug = f.debug_struct("Completion");
        debug.field("of", &kind).field("tag", &self.tag()).field("qp_num", &self.qp_num());
        debug.field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Completion {
    pub(crate) fn id(&self) -> WorkId {
        WorkId(self.0.wr_id)
    }

    /// The tag that the work request was posted with.
    pub fn tag(&self) -> u32 {
        self.id().tag()
    }

    /// Whether it is that of a receive; holds whatever the status.
    pub fn is_receive(&self) -> bool {
        self.id().is_receive()
    }

    /// The queue pair. It may be one that has been destroyed meanwhile.
    pub fn qp_num(&self) -> u32 {
        self.0.qp_num
    }

    /// How it ended. Nothing but tag, kind and queue pair holds unless it is a success.
    pub fn status(&self) -> Status {
        Status(self.0.status)
    }

    /// The length of what was received or read.
    pub fn byte_len(&self) -> u32 {
        self.0.byte_len
    }

    /// The key that the peer's SEND_WITH_INV invalidated.
    pub fn invalidated(&self) -> Option<u32> {
        (self.0.wc_flags & sys::WC_WITH_INV != 0).then_some(self.0.invalidated_rkey)
    }
}

struct Channel {
    raw: NonNull<sys::CompChannel>,
    device: Device,
}

// SAFETY: the address is handed to the verbs alone, which may be called from any thread.
unsafe impl Send for Channel {}
// SAFETY: as above.
unsafe impl Sync for Channel {}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: our own channel; every completion queue of it held this, so none is left.
        let result =
            unsafe { (self.device.library().api().ibv_destroy_comp_channel)(self.raw.as_ptr()) };
        let_go("ibv_destroy_comp_channel", result, || self.device.clone());
    }
}

/// A descriptor that becomes readable when a completion queue that was armed has something; clones refer to the same.
#[derive(Clone)]
pub struct CompletionChannel(Arc<Channel>);

impl fmt::Debug for CompletionChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionChannel").field("device", &self.0.device).finish_non_exhaustive()
    }
}

impl CompletionChannel {
    /// A new channel of a device.
    ///
    /// # Errors
    /// If the system has no descriptor left.
    pub fn new(device: &Device) -> Result<CompletionChannel, VerbsError> {
        // SAFETY: an open context.
        let raw = unsafe { (device.library().api().ibv_create_comp_channel)(device.context()) };
        let raw = NonNull::new(raw).ok_or_else(|| last("ibv_create_comp_channel"))?;
        let channel = CompletionChannel(Arc::new(Channel { raw, device: device.clone() }));
        let fd = channel.as_fd();
        let unblocked = fcntl_getfl(fd).and_then(|flags| fcntl_setfl(fd, flags | OFlags::NONBLOCK));
        unblocked.map_err(|error| VerbsError::Call { call: "fcntl", source: error.into() })?;
        Ok(channel)
    }

    /// The token of the next completion queue that has something, if there is one. It has to be armed anew, and polled
    /// after that, before one may sleep again.
    ///
    /// # Errors
    /// If the device cannot be asked.
    pub fn next_event(&self) -> Result<Option<u64>, VerbsError> {
        let api = self.0.device.library().api();
        let (mut cq, mut token) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: a live channel and room for the answer.
        let result =
            unsafe { (api.ibv_get_cq_event)(self.0.raw.as_ptr(), &raw mut cq, &raw mut token) };
        if !check_ready("ibv_get_cq_event", result)? {
            return Ok(None);
        }
        // SAFETY: a queue is not destroyed before its events have been acknowledged; this one is, once.
        unsafe { (api.ibv_ack_cq_events)(cq, 1) };
        Ok(Some(token.addr() as u64))
    }
}

impl AsFd for CompletionChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel's descriptor is open as long as the channel, which `self` keeps.
        unsafe { BorrowedFd::borrow_raw((*self.0.raw.as_ptr()).fd) }
    }
}

struct Queue {
    raw: NonNull<sys::Cq>,
    poll: sys::PollCq,
    arm: sys::ReqNotifyCq,
    channel: Option<CompletionChannel>,
    device: Device,
}

// SAFETY: the address is handed to the verbs alone, which may be called from any thread.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: our own queue; every queue pair of it held this, so none is left.
        let result = unsafe { (self.device.library().api().ibv_destroy_cq)(self.raw.as_ptr()) };
        let_go("ibv_destroy_cq", result, || (self.channel.clone(), self.device.clone()));
    }
}

/// A handle to a completion queue; clones refer to the same.
#[derive(Clone)]
pub struct CompletionQueue(Arc<Queue>);

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionQueue")
            .field("capacity", &self.capacity())
            .finish_non_exhaustive()
    }
}

impl CompletionQueue {
    /// A queue for at least `capacity` completions. `token` is what events call it; `vector` says which interrupt it uses.
    ///
    /// # Errors
    /// If the device does not have so much.
    pub fn new(
        device: &Device,
        capacity: u32,
        token: u64,
        channel: Option<&CompletionChannel>,
        vector: u32,
    ) -> Result<CompletionQueue, VerbsError> {
        if channel.is_some_and(|channel| channel.0.device != *device) {
            return Err(VerbsError::Misuse("the completion channel is of another device"));
        }
        let capacity = i32::try_from(capacity).unwrap_or(i32::MAX);
        let vector = i32::try_from(vector).unwrap_or(i32::MAX);
        let token = usize::try_from(token).unwrap_or(usize::MAX);
        let raw_channel = channel.map_or(ptr::null_mut(), |channel| channel.0.raw.as_ptr());
        // SAFETY: an open context and a channel of it, which the queue keeps; the token is never followed.
        let raw = unsafe {
            let token = ptr::without_provenance_mut(token);
            (device.library().api().ibv_create_cq)(
                device.context(),
                capacity,
                token,
                raw_channel,
                vector,
            )
        };
        let raw = NonNull::new(raw).ok_or_else(|| last("ibv_create_cq"))?;
        // SAFETY: an open context, whose operations do not change.
        let (poll, arm) = unsafe {
            let ops = &(*device.context()).ops;
            (ops.poll_cq, ops.req_notify_cq)
        };
        let (Some(poll), Some(arm)) = (poll, arm) else {
            // SAFETY: the queue just made, which nobody has seen.
            unsafe { (device.library().api().ibv_destroy_cq)(raw.as_ptr()) };
            return Err(VerbsError::Misuse("the device's driver cannot poll"));
        };
        let (channel, device) = (channel.cloned(), device.clone());
        Ok(CompletionQueue(Arc::new(Queue { raw, poll, arm, channel, device })))
    }

    pub(crate) fn raw(&self) -> *mut sys::Cq {
        self.0.raw.as_ptr()
    }

    /// The device that it belongs to.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// How many completions it holds; one more is the end of it and all its queue pairs.
    pub fn capacity(&self) -> u32 {
        // SAFETY: a live queue, which is never resized.
        u32::try_from(unsafe { (*self.raw()).cqe }).unwrap_or(0)
    }

    /// Takes completions out, as many as there are and fit.
    ///
    /// # Errors
    /// If the queue is broken.
    #[inline]
    pub fn poll<'a>(&self, room: &'a mut [Completion]) -> Result<&'a [Completion], VerbsError> {
        let count = i32::try_from(room.len()).unwrap_or(i32::MAX);
        // SAFETY: a live queue, and room for `count` completions: `Completion` is transparent.
        let count = unsafe { (self.0.poll)(self.raw(), count, room.as_mut_ptr().cast()) };
        match usize::try_from(count) {
            Ok(count) => Ok(room.get(..count).unwrap_or_default()),
            Err(_) => Err(VerbsError::Misuse("the completion queue cannot be polled any more")),
        }
    }

    /// Asks for one event on the channel when the next completion comes. What came before has to be polled after this.
    ///
    /// # Errors
    /// If it has no channel, or the device is gone.
    pub fn arm(&self) -> Result<(), VerbsError> {
        if self.0.channel.is_none() {
            return Err(VerbsError::Misuse("the completion queue has no channel"));
        }
        // SAFETY: a live queue.
        check("ibv_req_notify_cq", unsafe { (self.0.arm)(self.raw(), 0) })
    }
}
