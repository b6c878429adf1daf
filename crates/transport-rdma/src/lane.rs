//! Lane.
/// A lane's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LaneId(pub(crate) u32);
/// Parts.
#[derive(Debug)]
pub(crate) struct LaneParts {}
