//! One connection that carries JSON-RPC without framing: Unix sockets and TCP.
//!
//! Two halves in one task. The incoming half takes a message, waits until there is room for it among those under way,
//! and begins it; the outgoing half writes answers as they come. A message's place is free again when its answer has
//! been written, and [`room`](super::room) bounds the bytes of all answers; so a client that does not read is soon
//! neither answered nor read from.
//!
//! The end: the incoming half ends when the client has sent everything, has sent what is not JSON, was silent for too
//! long, or the server stops; then what is under way is answered and the client sees the end of the stream. The
//! outgoing half ends early when the client is gone, or its place is needed ([`places`](super::places)); what it had
//! begun goes on.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::codec::FramedRead;

use super::accept::Protocol;
use super::places::Place;
use super::room::{Room, Ticket};
use super::stall::Stall;
use super::{Shared, refusal};
use crate::jsonrpc::{Message, RpcError, SplitError, Splitter};

/// How long a client that has been told off is listened to. Closing a socket while bytes are
/// still coming in makes the kernel reset it, and the client might never see why.
const LINGER: Duration = Duration::from_secs(2);

/// The protocol of connections without framing.
#[derive(Clone, Debug)]
pub(super) struct Streams;

impl Protocol for Streams {
    async fn serve<S>(self, shared: Arc<Shared>, stream: S, place: &Place)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        serve(&shared, stream, place).await;
    }

    fn full(&self, connections: usize) -> Bytes {
        refusal(RpcError::internal(format!("all {connections} connections are in use")))
    }
}

/// An answer on its way, the room that it takes, and the place of what it answers.
type Reply = (Bytes, Ticket, OwnedSemaphorePermit);

async fn serve<S>(shared: &Shared, stream: S, place: &Place)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (reader, writer) = tokio::io::split(Stall::new(stream, shared.limits.idle));
    let limits = &shared.limits;
    let mut frames = FramedRead::new(reader, Splitter::new(limits.message, limits.nesting));
    // Bounded by the room that each reply holds.
    let (replies, outgoing) = unbounded_channel();
    let mut send = pin!(send(writer, outgoing));
    let garbage = tokio::select! {
        garbage = receive(shared, place, &mut frames, replies) => garbage,
        () = shared.stop.cancelled() => false,
        _gone = &mut send => return,
    };
    // Perhaps it is not there any more: a client that is gone and one that only listens look alike.
    let _yielding = place.may_be_taken();
    if send.await.is_ok() && garbage {
        let _ = timeout(LINGER, discard(frames.into_inner())).await;
    }
}

/// Begins what comes. Returns whether the end is that it was garbage.
async fn receive<S>(
    shared: &Shared,
    place: &Place,
    frames: &mut FramedRead<ReadHalf<S>, Splitter>,
    replies: UnboundedSender<Reply>,
) -> bool
where
    S: AsyncRead,
{
    let limits = &shared.limits;
    let answers = Room::new(limits.answers);
    let capacity = limits.weight(limits.message);
    let room =
        Arc::new(Semaphore::new(usize::try_from(capacity).unwrap_or(Semaphore::MAX_PERMITS)));
    loop {
        // Having all the room means that nothing is under way.
        let silence = async {
            let _all = room.acquire_many(capacity).await;
            sleep(limits.idle).await;
        };
        let frame = tokio::select! {
            frame = frames.next() => frame,
            () = silence => {
                tracing::debug!("a JSON-RPC connection was silent for too long");
                return false;
            }
        };
        let (message, length) = match frame {
            Some(Ok(text)) => (Message::parse(&text), text.len()),
            Some(Err(SplitError::Garbage(error))) => (Err(error), 0),
            Some(Err(SplitError::Io(_))) | None => return false,
        };
        let weight = limits.weight(length);
        let permit = if let Ok(permit) = room.clone().try_acquire_many_owned(weight) {
            permit
        } else {
            // As long as nothing is read, it is not known whether the client is still there.
            let _yielding = place.may_be_taken();
            let Ok(permit) = room.clone().acquire_many_owned(weight).await else {
                return false;
            };
            permit
        };
        match message {
            Ok(message) => {
                let replies = replies.clone();
                shared.begin(message, answers.clone(), move |answer, ticket| {
                    if let Some(answer) = answer {
                        // If the client is gone, there is nobody to tell.
                        let _ = replies.send((answer, ticket, permit));
                    }
                });
            }
            Err(error) => {
                let garbage = error.code == RpcError::PARSE_ERROR;
                let _ = replies.send((refusal(error), answers.ticket(), permit));
                if garbage {
                    return true;
                }
            }
        }
    }
}

/// Writes answers until there will be no more, then the end of the stream.
async fn send<S: AsyncWrite>(
    mut writer: WriteHalf<S>,
    mut outgoing: UnboundedReceiver<Reply>,
) -> std::io::Result<()> {
    while let Some((answer, _ticket, _permit)) = outgoing.recv().await {
        writer.write_all(&answer).await?;
    }
    writer.shutdown().await
}

async fn discard<R: AsyncRead + Unpin>(mut reader: R) {
    let mut bytes = [0; 4096];
    while reader.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
}
