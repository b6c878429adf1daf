//! What could not be had when the node started: devices that cannot be opened, RDMA, addresses that cannot be listened
//! on. The rest serves; these are tried again, on a thread that may block, until they come or are removed.

use std::sync::Arc;
use std::time::Duration;

use crate::objects::Address;
use crate::plane::{Creation, Plane};

/// Between two attempts.
const INTERVAL: Duration = Duration::from_secs(1);

/// Tries for as long as it is polled.
pub async fn try_again_and_again(plane: Arc<Plane>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        try_controllers(&plane).await;
        try_devices(&plane).await;
        try_rdma(&plane).await;
        try_listeners(&plane).await;
    }
}

async fn try_controllers(plane: &Arc<Plane>) {
    let state = plane.state();
    for attached in state.unattached() {
        let name = attached.object.name.clone();
        // An attempt that fails says nothing new.
        let found = plane.attach(attached.object.clone(), state.nvme_options).await;
        let Ok(found) = found else { continue };
        let put = plane.change(move |state| {
            state.put_attached(found);
            Ok::<_, std::convert::Infallible>(())
        });
        match put.await {
            Ok(()) => tracing::info!("NVMe controller {name} is there now"),
            Err(error) => {
                tracing::warn!("NVMe controller {name} is there, but cannot be used: {error}");
            }
        }
    }
}

async fn try_devices(plane: &Arc<Plane>) {
    let state = plane.state();
    for opened in state.unopened() {
        let object = opened.object.clone();
        let name = object.name.clone();
        // An attempt that fails says nothing new.
        let Ok(found) = plane.open(object, Duration::ZERO, Creation::Never).await else { continue };
        let put = plane.change(move |state| {
            state.put_opened(found);
            Ok::<_, std::convert::Infallible>(())
        });
        match put.await {
            Ok(()) => tracing::info!("device {name} is there now"),
            Err(error) => tracing::warn!("device {name} is there, but cannot be used: {error}"),
        }
    }
}

async fn try_rdma(plane: &Arc<Plane>) {
    if plane.rdma_waiting().is_some() {
        let plane = Arc::clone(plane);
        // It can only fail because the process ends.
        let _ = tokio::task::spawn_blocking(move || plane.try_rdma()).await;
    }
}

async fn try_listeners(plane: &Arc<Plane>) {
    let addresses: Vec<Address> = plane.unbound();
    for address in addresses {
        if let Ok(listener) = plane.bind(address, None).await {
            plane.bound(address, listener).await;
        }
    }
}
