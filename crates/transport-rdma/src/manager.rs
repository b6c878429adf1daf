//! Manager.
use crate::error::RdmaError;
use crate::network::Shared;
use std::sync::Arc;
use verbs::Library;
/// The manager.
#[derive(Debug)]
pub struct Manager {
    shared: Arc<Shared>,
    library: Library,
}
impl Manager {
    pub(crate) fn new(shared: Arc<Shared>, library: Library) -> Result<Manager, RdmaError> {
        Ok(Manager { shared, library })
    }
    pub(crate) fn run(&mut self) {}
}
