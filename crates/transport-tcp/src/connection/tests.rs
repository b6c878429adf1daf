//! The state machine without a socket: a scripted target on one side, bytes on the other.

#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
#![allow(clippy::unchecked_time_subtraction, clippy::large_stack_arrays)]

mod ends;
mod flow;
mod hostile;
mod rig;
mod splits;
