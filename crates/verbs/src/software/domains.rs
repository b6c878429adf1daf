//! The provider's domains: of protection, of threads, and what joins one of each. Those that something is made of stay.
//!
//! Safety as in [`objects`](super::objects).

use std::ffi::c_int;

use super::device::{context, refuse_object, world};
use super::world::{Domain, World};
use crate::sys;

pub(crate) unsafe extern "C" fn alloc_pd(raw: *mut sys::Context) -> *mut sys::Pd {
    // SAFETY: see the module.
    let (context, mut world) = unsafe { (context(raw), world(raw)) };
    if world.is_removed(context.device) {
        return refuse_object(libc::EIO);
    }
    world.add_domain(raw, context.number, None)
}

pub(crate) unsafe extern "C" fn dealloc_pd(raw: *mut sys::Pd) -> c_int {
    // SAFETY: see the module.
    let (context, handle) = unsafe { ((*raw).context, (*raw).handle) };
    // SAFETY: see the module.
    let mut world = unsafe { world(context) };
    let joined = |domain: &Domain| domain.joins.is_some_and(|(of, _)| of == handle);
    let used = world.regions.values().any(|region| region.domain == handle)
        || world.shared_receives.values().any(|queue| queue.domain == handle)
        || world.pairs.values().any(|pair| pair.domain == handle)
        || world.domains.values().any(joined);
    if used {
        return world.refuse_to_destroy();
    }
    world.domains.remove(&handle);
    drop(world);
    // SAFETY: see the module; destroyed once.
    drop(unsafe { Box::from_raw(raw) });
    0
}

#[repr(C)]
struct SoftTd {
    base: sys::Td,
    number: u32,
}

pub(crate) unsafe extern "C" fn alloc_td(
    raw: *mut sys::Context,
    _options: *mut sys::TdInitAttr,
) -> *mut sys::Td {
    // SAFETY: see the module.
    let (context, mut world) = unsafe { (context(raw), world(raw)) };
    let device = world.devices.get(context.device).filter(|device| !device.removed);
    let Some(device) = device else { return refuse_object(libc::EIO) };
    if !device.options.thread_domains {
        return refuse_object(libc::EOPNOTSUPP);
    }
    let number = world.number();
    world.thread_domains.insert(number, context.number);
    Box::into_raw(Box::new(SoftTd { base: sys::Td { context: raw }, number })).cast()
}

pub(crate) unsafe extern "C" fn dealloc_td(raw: *mut sys::Td) -> c_int {
    // SAFETY: see the module.
    let (context, number) = unsafe { ((*raw).context, (*raw.cast::<SoftTd>()).number) };
    // SAFETY: see the module.
    let mut world = unsafe { world(context) };
    if world.domains.values().any(|domain| domain.joins.is_some_and(|(_, td)| td == number)) {
        return world.refuse_to_destroy();
    }
    world.thread_domains.remove(&number);
    drop(world);
    // SAFETY: see the module; destroyed once.
    drop(unsafe { Box::from_raw(raw.cast::<SoftTd>()) });
    0
}

pub(crate) unsafe extern "C" fn alloc_parent_domain(
    raw: *mut sys::Context,
    options: *mut sys::ParentDomainInitAttr,
) -> *mut sys::Pd {
    // SAFETY: see the module.
    let (pd, td, mask) = unsafe { ((*options).pd, (*options).td, (*options).comp_mask) };
    if pd.is_null() || td.is_null() || mask != 0 {
        return refuse_object(libc::EINVAL);
    }
    // SAFETY: see the module.
    let joins = unsafe { ((*pd).handle, (*td.cast::<SoftTd>()).number) };
    // SAFETY: see the module.
    let (context, mut world) = unsafe { (context(raw), world(raw)) };
    world.add_domain(raw, context.number, Some(joins))
}

impl World {
    fn add_domain(
        &mut self,
        raw: *mut sys::Context,
        context: u32,
        joins: Option<(u32, u32)>,
    ) -> *mut sys::Pd {
        let handle = self.number();
        self.domains.insert(handle, Domain { context, joins });
        Box::into_raw(Box::new(sys::Pd { context: raw, handle }))
    }

    /// The domain that protects what is made with this one.
    pub(crate) fn protection(&self, domain: u32) -> u32 {
        let joins = self.domains.get(&domain).and_then(|domain| domain.joins);
        joins.map_or(domain, |(protection, _)| protection)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use std::ptr;

    use super::*;
    use crate::Fabric;
    use crate::software::DeviceOptions;
    use crate::software::device::API;

    #[test]
    fn what_something_else_is_made_of_is_not_destroyed() {
        let fabric = Fabric::new(1);
        fabric.add_device(DeviceOptions::new("soft0", "192.0.2.1".parse().unwrap()));
        let device = fabric.library().devices().unwrap().remove(0);
        let context = device.context();
        // SAFETY: an open context, and objects that it makes; those whose destruction is refused stay.
        unsafe {
            let pd = alloc_pd(context);
            let td = alloc_td(context, &mut sys::TdInitAttr::default());
            let mut options = sys::ParentDomainInitAttr {
                pd,
                td,
                comp_mask: 0,
                alloc: std::ptr::null_mut(),
                free: std::ptr::null_mut(),
                pd_context: std::ptr::null_mut(),
            };
            let joined = alloc_parent_domain(context, &raw mut options);
            assert_eq!(fabric.census(), [0, 0, 0, 0, 3, 0]);
            assert_eq!((dealloc_pd(pd), dealloc_td(td)), (libc::EBUSY, libc::EBUSY));
            let srq = crate::software::objects::create_srq(
                joined,
                &mut sys::SrqInitAttr {
                    srq_context: std::ptr::null_mut(),
                    attr: sys::SrqAttr { max_wr: 1, max_sge: 1, srq_limit: 0 },
                },
            );
            assert_eq!(dealloc_pd(joined), libc::EBUSY);
            assert_eq!(crate::software::objects::destroy_srq(srq), 0);
            assert_eq!((dealloc_pd(joined), dealloc_td(td), dealloc_pd(pd)), (0, 0, 0));
        }
        assert_eq!(fabric.census(), [0; 6]);
        assert_eq!(fabric.refusals(), 3);
    }

    #[test]
    fn contexts_and_channels_stay_as_long_as_they_are_used() {
        let fabric = Fabric::new(1);
        fabric.add_device(DeviceOptions::new("soft0", "192.0.2.1".parse().unwrap()));
        let description = fabric.0.device_list().remove(0);
        let events = fabric.0.event_channel();
        // SAFETY: a device's description, and objects that stay where their destruction is refused.
        unsafe {
            let context = (API.ibv_open_device)(description);
            let channel = (API.ibv_create_comp_channel)(context);
            assert_eq!((API.ibv_close_device)(context), libc::EBUSY);
            let cq = (API.ibv_create_cq)(context, 1, ptr::null_mut(), channel, 0);
            assert_eq!((API.ibv_destroy_comp_channel)(channel), libc::EBUSY);
            assert_eq!((API.ibv_destroy_cq)(cq), 0);
            assert_eq!((API.ibv_destroy_comp_channel)(channel), 0);
            let cq = (API.ibv_create_cq)(context, 1, ptr::null_mut(), ptr::null_mut(), 0);
            assert_eq!((API.ibv_close_device)(context), libc::EBUSY);
            assert_eq!((API.ibv_destroy_cq)(cq), 0);
            let td = alloc_td(context, &mut sys::TdInitAttr::default());
            assert_eq!((API.ibv_close_device)(context), libc::EBUSY);
            assert_eq!(dealloc_td(td), 0);
            let pd = alloc_pd(context);
            assert_eq!((API.ibv_close_device)(context), libc::EBUSY);
            assert_eq!(dealloc_pd(pd), 0);
            assert_eq!((API.ibv_close_device)(context), 0);
            assert_eq!(fabric.refusals(), 5);

            let mut id = ptr::null_mut();
            assert_eq!((API.rdma_create_id)(events, &raw mut id, ptr::null_mut(), sys::PS_TCP), 0);
            (API.rdma_destroy_event_channel)(events);
            assert_eq!(fabric.refusals(), 6);
            assert_eq!((API.rdma_destroy_id)(id), 0);
            (API.rdma_destroy_event_channel)(events);
        }
        assert_eq!((fabric.refusals(), fabric.census()), (6, [0; 6]));
    }
}
