//! What was told of an object: until it is acknowledged the object is not destroyed, which waits for that as the libraries do.
//! Whoever reads of an object in between may rely on it.

use std::sync::{MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use super::Shared;
use super::world::World;

/// The addresses of objects, each once for every event that somebody has of it, and the thread that took the event.
#[derive(Debug, Default)]
pub(crate) struct Told(Vec<(usize, ThreadId)>);

impl Told {
    pub(crate) fn add(&mut self, object: usize) {
        self.0.push((object, thread::current().id()));
    }

    /// The thread that has an event of this object.
    fn holder(&self, object: usize) -> Option<ThreadId> {
        self.0.iter().find(|(told, _)| *told == object).map(|&(_, thread)| thread)
    }

    fn remove(&mut self, object: usize) {
        let place = self.0.iter().position(|&(told, _)| told == object);
        debug_assert!(place.is_some(), "more acknowledged than was told");
        if let Some(place) = place {
            self.0.swap_remove(place);
        }
    }
}

impl Shared {
    /// So many events of this object are acknowledged.
    pub(crate) fn acknowledge(&self, object: usize, events: u32) {
        let mut world = self.world();
        for _ in 0..events {
            world.told.remove(object);
        }
        self.acknowledged.notify_all();
    }

    /// Waits until nobody has an event of this object, which nothing more can be told of.
    pub(crate) fn await_acknowledgement(&self, mut world: MutexGuard<'_, World>, object: usize) {
        while let Some(thread) = world.told.holder(object) {
            // The libraries would wait for ever. That one thread takes an event and another acknowledges it does not occur here.
            debug_assert!(
                thread != thread::current().id(),
                "destroyed by the thread that has an event of it to acknowledge"
            );
            world = self.acknowledged.wait(world).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use std::net::SocketAddr;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::ptr;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::software::{DeviceOptions, device::API, objects};
    use crate::{Fabric, sys};

    fn fabric() -> Fabric {
        let fabric = Fabric::new(1);
        fabric.add_device(DeviceOptions::new("soft0", "192.0.2.1".parse().unwrap()));
        fabric
    }

    /// Sees that `destroy` ends only after `acknowledge` has begun. The object is on the way out as soon as there is one fewer of its
    /// kind.
    fn waits(
        fabric: &Fabric,
        kind: usize,
        destroy: impl FnOnce() + Send,
        acknowledge: impl FnOnce(),
    ) {
        let there = fabric.census()[kind];
        let begun = AtomicBool::new(false);
        thread::scope(|scope| {
            let destroying = scope.spawn(|| {
                destroy();
                begun.load(Ordering::SeqCst)
            });
            while fabric.census()[kind] == there {
                thread::yield_now();
            }
            // One who does not wait is done before long.
            let mut patience = 10_000;
            while patience > 0 && !destroying.is_finished() {
                patience -= 1;
                thread::yield_now();
            }
            begun.store(true, Ordering::SeqCst);
            acknowledge();
            assert!(destroying.join().unwrap(), "it did not wait");
        });
    }

    #[test]
    fn what_an_event_is_of_is_destroyed_when_that_is_acknowledged() {
        let fabric = fabric();
        let device = fabric.library().devices().unwrap().remove(0);
        let context = device.context();
        // SAFETY: an open context, objects that it makes and that are destroyed once, well-formed requests.
        unsafe {
            let pd = (API.ibv_alloc_pd)(context);
            let channel = (API.ibv_create_comp_channel)(context);
            let cq = (API.ibv_create_cq)(context, 1, ptr::null_mut(), channel, 0);
            let attr = sys::SrqAttr { max_wr: 1, max_sge: 1, srq_limit: 0 };
            let mut options = sys::SrqInitAttr { srq_context: ptr::null_mut(), attr };
            let srq = (API.ibv_create_srq)(pd, &raw mut options);
            let mut options = sys::QpInitAttr {
                qp_context: ptr::null_mut(),
                send_cq: cq,
                recv_cq: cq,
                srq: ptr::null_mut(),
                cap: sys::QpCap { max_send_wr: 1, max_recv_wr: 2, ..sys::QpCap::default() },
                qp_type: sys::QPT_RC,
                sq_sig_all: 0,
            };
            let qp = (API.ibv_create_qp)(pd, &raw mut options);

            // The queue is nearly empty, the second completion is too much, the queue pair breaks.
            let mut limit = sys::SrqAttr { max_wr: 0, max_sge: 0, srq_limit: 1 };
            assert_eq!((API.ibv_modify_srq)(srq, &raw mut limit, sys::SRQ_LIMIT), 0);
            let mut init = sys::QpAttr { qp_state: sys::QPS_INIT, ..sys::QpAttr::default() };
            assert_eq!((API.ibv_modify_qp)(qp, &raw mut init, sys::QP_STATE), 0);
            for wr_id in 0..2 {
                let (next, sg_list) = (ptr::null_mut(), ptr::null_mut());
                let mut receive = sys::RecvWr { wr_id, next, sg_list, num_sge: 0 };
                let mut bad = ptr::null_mut();
                assert_eq!(objects::post_recv(qp, &raw mut receive, &raw mut bad), 0);
            }
            objects::req_notify_cq(cq, 0);
            fabric.break_pair((*qp).qp_num);
            assert_eq!(fabric.run(10), 2);

            let event = || {
                let element = sys::AsyncElement { port_num: 0 };
                let mut event = sys::AsyncEvent { element, event_type: 0 };
                assert_eq!((API.ibv_get_async_event)(context, &raw mut event), 0);
                event
            };
            let (mut of_srq, mut of_qp, mut of_cq) = (event(), event(), event());
            assert_eq!((of_srq.element.srq, of_qp.element.qp), (srq, qp));
            assert_eq!(of_cq.element.cq, cq);
            let (mut told, mut token) = (ptr::null_mut(), ptr::null_mut());
            assert_eq!((API.ibv_get_cq_event)(channel, &raw mut told, &raw mut token), 0);
            assert_eq!(told, cq);

            let [qp, cq, srq] =
                [qp.expose_provenance(), cq.expose_provenance(), srq.expose_provenance()];
            let destroy =
                || assert_eq!((API.ibv_destroy_qp)(ptr::with_exposed_provenance_mut(qp)), 0);
            waits(&fabric, 0, destroy, || (API.ibv_ack_async_event)(&raw mut of_qp));
            let destroy =
                || assert_eq!((API.ibv_destroy_cq)(ptr::with_exposed_provenance_mut(cq)), 0);
            waits(&fabric, 1, destroy, || {
                (API.ibv_ack_cq_events)(told, 1);
                (API.ibv_ack_async_event)(&raw mut of_cq);
            });
            let destroy =
                || assert_eq!((API.ibv_destroy_srq)(ptr::with_exposed_provenance_mut(srq)), 0);
            waits(&fabric, 2, destroy, || (API.ibv_ack_async_event)(&raw mut of_srq));
            assert_eq!((API.ibv_destroy_comp_channel)(channel), 0);
            assert_eq!((API.ibv_dealloc_pd)(pd), 0);
        }
    }

    #[test]
    fn an_identifier_is_destroyed_when_its_events_are_acknowledged() {
        let fabric = fabric();
        let channel = fabric.0.event_channel();
        // SAFETY: a live channel, and an identifier of it that is destroyed once.
        unsafe {
            let mut id = ptr::null_mut();
            (API.rdma_create_id)(channel, &raw mut id, ptr::null_mut(), sys::PS_TCP);
            let mut to = sys::encode(SocketAddr::new("192.0.2.1".parse().unwrap(), 4420));
            (API.rdma_resolve_addr)(id, ptr::null_mut(), (&raw mut to).cast(), 1000);
            assert!(fabric.step());
            let mut event = ptr::null_mut();
            assert_eq!((API.rdma_get_cm_event)(channel, &raw mut event), 0);
            let id = id.expose_provenance();
            let destroy =
                || assert_eq!((API.rdma_destroy_id)(ptr::with_exposed_provenance_mut(id)), 0);
            waits(&fabric, 5, destroy, || assert_eq!((API.rdma_ack_cm_event)(event), 0));
            (API.rdma_destroy_event_channel)(channel);
        }
    }

    #[test]
    #[cfg(debug_assertions)]
    fn nobody_waits_for_himself() {
        let shared = fabric().0;
        shared.world().told.add(7);
        let wait = AssertUnwindSafe(|| shared.await_acknowledgement(shared.world(), 7));
        assert!(catch_unwind(wait).is_err());
        shared.acknowledge(7, 1);
        shared.await_acknowledgement(shared.world(), 7);
    }
}
