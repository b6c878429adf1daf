//! What is in force of the transports; and RDMA, which is there or is waited for.
//!
//! Subsystems have limits, transports have not: a controller is the same whatever it is reached by. So a subsystem keeps to the
//! least that its transports were created with. Data in capsules is the exception, since each transport has its own bound for it.
//!
//! RDMA needs libraries and a kernel module that a machine may lack. A client that creates the transport there is told so. A
//! state that has the transport is served without it: its addresses wait ([`crate::waiting`]), and it comes up when it can.

use std::sync::{Arc, PoisonError};

use node::{NodeError, Rdma};
use target::configuration::Limits;
use transport_rdma::{RdmaConfig, RdmaError};

use crate::objects::{Transport, Trtype};
use crate::plane::Plane;
use crate::state::State;

/// Process settings, which no client exceeds.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Of every subsystem; data in capsules, and the depth of queues, over TCP.
    pub limits: Limits,
    /// Of the RDMA transport.
    pub rdma: RdmaConfig,
}

fn least<T: Ord>(asked: Option<T>, bound: T) -> T {
    match asked {
        Some(asked) => asked.min(bound),
        None => bound,
    }
}

impl State {
    /// What is in force in every subsystem: what the creators of the transports asked for, as far as the process settings
    /// allow.
    pub fn limits(&self) -> Limits {
        let each = self.transports.values().map(|transport| self.limits_asked(transport));
        let all = each.reduce(|one, other| Limits {
            queue_depth: one.queue_depth.min(other.queue_depth),
            io_queues: one.io_queues.min(other.io_queues),
            max_transfer: one.max_transfer.min(other.max_transfer),
            in_capsule: one.in_capsule.max(other.in_capsule),
            ..one
        });
        all.unwrap_or(self.settings.limits)
    }

    fn limits_asked(&self, transport: &Transport) -> Limits {
        let bounds = self.settings.limits;
        let (queue_depth, in_capsule) = match transport.trtype {
            Trtype::Tcp => (
                least(transport.max_queue_depth, bounds.queue_depth),
                least(transport.in_capsule_data_size, bounds.in_capsule),
            ),
            Trtype::Rdma => {
                let config = self.rdma_config();
                (config.queue_depth, config.in_capsule_data)
            }
        };
        Limits {
            queue_depth,
            in_capsule,
            io_queues: least(transport.max_io_qpairs_per_ctrlr, bounds.io_queues),
            max_transfer: least(transport.max_io_size, bounds.max_transfer),
            ..bounds
        }
    }

    /// What is in force on a transport.
    pub fn transport_limits(&self, trtype: Trtype) -> Limits {
        let limits = self.limits();
        let own = match trtype {
            Trtype::Tcp => self.settings.limits.in_capsule,
            Trtype::Rdma => self.rdma_config().in_capsule_data,
        };
        Limits { in_capsule: limits.in_capsule.min(own), ..limits }
    }

    /// How RDMA is to be run: what its creator asked for, as far as the process settings allow.
    pub fn rdma_config(&self) -> RdmaConfig {
        let bounds = self.settings.rdma.clone();
        let Some(asked) = self.transports.get(&Trtype::Rdma) else { return bounds.clamped() };
        RdmaConfig {
            queue_depth: least(asked.max_queue_depth, bounds.queue_depth),
            in_capsule_data: least(asked.in_capsule_data_size, bounds.in_capsule_data),
            shared_receives: least(asked.max_srq_depth, bounds.shared_receives),
            completions: least(asked.num_cqe, bounds.completions),
            ..bounds
        }
        .clamped()
    }

    fn has_rdma(&self) -> bool {
        self.transports.contains_key(&Trtype::Rdma)
    }
}

impl Plane {
    /// Starts RDMA as a state wants it. It is not the node's yet. Blocks.
    fn start_rdma(&self, state: &State) -> Result<Rdma, NodeError> {
        let library = self.libraries.open().map_err(RdmaError::from)?;
        self.node().prepare_rdma(state.rdma_config(), library)
    }

    /// Starts RDMA if a state that is wanted has it and the current one has not.
    ///
    /// # Errors
    /// [`NodeError::Rdma`], which says what is missing.
    pub async fn prepare_rdma(
        self: &Arc<Self>,
        before: &State,
        wanted: &State,
    ) -> Result<Option<Rdma>, NodeError> {
        if before.has_rdma() || !wanted.has_rdma() {
            return Ok(None);
        }
        let (plane, wanted) = (Arc::clone(self), wanted.clone());
        let task = tokio::task::spawn_blocking(move || plane.start_rdma(&wanted));
        // Only a process that ends does not run it.
        task.await.map_or(Ok(None), |rdma| rdma.map(Some))
    }

    /// Runs RDMA if the state that is about to be served has it. One that cannot be had is waited for.
    pub(crate) fn begin_rdma(&self, state: &State) -> Result<(), NodeError> {
        if !state.has_rdma() {
            return Ok(());
        }
        match self.start_rdma(state) {
            Ok(rdma) => self.node().add_rdma(rdma),
            Err(error) => {
                tracing::warn!(
                    "{error}; what is served over RDMA waits for it, which is tried again"
                );
                self.set_rdma_waiting(Some(error.to_string()));
                Ok(())
            }
        }
    }

    /// Tries again to run RDMA, if the current state has it and it is waited for. Blocks.
    pub(crate) fn try_rdma(&self) {
        let state = self.state();
        if self.node().rdma().is_some() || !state.has_rdma() {
            return;
        }
        let added = self.start_rdma(&state).and_then(|rdma| self.node().add_rdma(rdma));
        // An attempt that fails says nothing new.
        if added.is_ok() {
            tracing::info!("RDMA is there now");
        }
        self.set_rdma_waiting(added.err().map(|error| error.to_string()));
    }

    fn set_rdma_waiting(&self, why: Option<String>) {
        *self.rdma_waiting.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Why RDMA, which the current state has, is waited for.
    pub fn rdma_waiting(&self) -> Option<String> {
        self.rdma_waiting.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
