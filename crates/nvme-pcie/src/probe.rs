//! Who a controller is, without attaching it: enabled with an admin queue alone, asked, and disabled again.
//!
//! On a thread that may block. For finding a controller by its serial number among those that have been handed over.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use nvme::register::{Version, offset};
use reactor::Clock;

use crate::admin::{Admin, AdminError};
use crate::function::Function;
use crate::scan;
use crate::session::{self, End};
use crate::tasks::Time;

/// Between two looks.
const POLL: Duration = Duration::from_millis(1);

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The serial number of the controller on this function; or why it does not say.
pub(crate) fn serial(function: &Arc<dyn Function>) -> Result<String, End> {
    let (clock, time) = (Clock::monotonic(), Rc::new(Time::default()));
    time.begin(clock.now());
    let mut asking = pin!(ask(function, &time));
    loop {
        time.begin(clock.now());
        if let Poll::Ready(serial) = asking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return serial;
        }
        thread::sleep(POLL);
    }
}

async fn ask(function: &Arc<dyn Function>, time: &Rc<Time>) -> Result<String, End> {
    session::disable(function, time).await?;
    let capabilities = session::capabilities(function)?;
    let queue = (capabilities.dstrd, u32::from(capabilities.mqes) + 1);
    let admin = Admin::new(function, time, PATIENCE, queue)?;
    session::enable(function, &admin, &capabilities)?;
    let ready = session::ready(function, time, &capabilities).await;
    let found = match ready {
        Ok(()) => identify(function, &admin).await.map_err(|error| End::Failed(error.to_string())),
        Err(end) => Err(end),
    };
    // Before its queues go.
    session::disable(function, time).await?;
    found
}

async fn identify(function: &Arc<dyn Function>, admin: &Admin) -> Result<String, AdminError> {
    let version = Version::from_bits(function.registers().read32(offset::VS));
    let mut finding = pin!(scan::Controller::find(admin, version));
    let found = std::future::poll_fn(|context| {
        admin.poll();
        finding.as_mut().poll(context)
    });
    Ok(scan::text(&found.await?.identify.sn))
}
