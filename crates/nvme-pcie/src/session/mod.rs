//! One stretch of a controller's service, from its being enabled to its being disabled.
//!
//! On the controller's thread ([`crate::life`] says what comes before and after). A session begins with a controller that is disabled, whatever it was
//! before, and ends with one: only then does the device reach no memory any more and may its queues be made anew.

mod events;
mod queues;
mod service;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::task::Poll;
use std::time::Duration;

use nvme::register::{
    AdminQueueAttributes, Capabilities, Configuration, ControllerStatus, ShutdownNotification,
    ShutdownStatus, Version, offset,
};
use reactor::Instant;

use crate::admin::{Admin, AdminError};
use crate::controller::{AttachError, Options, Shared};
use crate::function::{Function, Mapping, OWN_IOVA};
use crate::link::{Seats, State};
use crate::scan;
use crate::seat::Seat;
use crate::tasks::Time;
pub(crate) use service::is_allowed;

/// Where the shadow doorbells are, the I/O queues, and the pages of the reactors; far enough apart for the largest.
const SHADOW_IOVA: u64 = OWN_IOVA + (1 << 30);
const QUEUES_IOVA: u64 = OWN_IOVA + (2 << 30);
const SCRATCH_IOVA: u64 = OWN_IOVA + (32 << 30);
const WINDOW: u64 = 16 << 20;

/// How often a register is looked at that is about to change.
const POLL: Duration = Duration::from_millis(1);

/// How often the controller is looked at in service: whether it is there, and well.
const WATCH: Duration = Duration::from_secs(1);

/// How long a controller may take to shut down that does not say so itself.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Asynchronous Event Requests that are kept outstanding, if the controller takes as many.
const EVENT_REQUESTS: u8 = 4;

/// Why a session ends, or does not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// Somebody wants it back, or it is not wanted any more.
    Detached,
    /// Somebody wants it reset.
    Renewed,
    /// It is to be reset, for this reason.
    Reset(String),
    /// The device is not there any more.
    Removed,
    /// It cannot be used as it is.
    Failed(String),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> End {
        End::Failed(error.to_string())
    }
}

/// What the device said to a command that it must be able to carry out.
fn failed(what: &str) -> impl Fn(AdminError) -> End + '_ {
    move |error| End::Failed(format!("{what}: {error}"))
}

/// One session on an open function.
pub(crate) struct Session<'a> {
    shared: &'a Arc<Shared>,
    options: &'a Options,
    function: &'a Arc<dyn Function>,
    vectors: &'a [Arc<std::os::fd::OwnedFd>],
    time: &'a Rc<Time>,
    capabilities: Capabilities,
    /// Set by whoever finds that it has to end.
    end: RefCell<Option<End>>,
    aborting: Cell<u8>,
    /// When the reactors were given it.
    served: Cell<Option<Instant>>,
    admin: Admin,
    /// Its I/O queues' memory, and where it is.
    pages: RefCell<Vec<u64>>,
}

/// The registers that say what the controller is and how it does.
fn status(function: &Arc<dyn Function>) -> Result<ControllerStatus, End> {
    match function.registers().read32(offset::CSTS) {
        u32::MAX => Err(End::Removed),
        bits => Ok(ControllerStatus::from_bits(bits)),
    }
}

/// Has the controller stop, whatever it is doing. Afterwards it reaches no memory.
pub(crate) async fn disable(function: &Arc<dyn Function>, time: &Rc<Time>) -> Result<(), End> {
    let registers = function.registers();
    let capabilities = Capabilities::from_bits(registers.read64(offset::CAP));
    status(function)?;
    let configuration = Configuration::from_bits(registers.read32(offset::CC));
    if configuration.en {
        let off = Configuration { en: false, shn: ShutdownNotification::None, ..configuration };
        registers.write32(offset::CC, off.bits());
    }
    let patience = ready_timeout(function, &capabilities);
    if wait_for(function, time, patience, |status| !status.rdy).await? {
        return Ok(());
    }
    tracing::warn!(
        "{}: does not stop within {patience:?}: resetting the PCI function",
        function.address()
    );
    function
        .reset()
        .map_err(|error| End::Failed(format!("does not stop, and cannot be reset: {error}")))?;
    if wait_for(function, time, patience, |status| !status.rdy).await? {
        return Ok(());
    }
    Err(End::Failed("does not stop, not even by a reset of its PCI function".to_owned()))
}

/// What a controller can do at all; as far as the driver can drive it.
pub(crate) fn capabilities(function: &Arc<dyn Function>) -> Result<Capabilities, End> {
    status(function)?;
    let capabilities = Capabilities::from_bits(function.registers().read64(offset::CAP));
    if capabilities.mpsmin > 0 {
        let size = 4_u64 << capabilities.mpsmin;
        let problem = format!("its smallest page is {size} KiB: only 4 KiB are supported");
        return Err(End::Failed(problem));
    }
    Ok(capabilities)
}

/// Enables a controller, which is disabled, with this admin queue.
pub(crate) fn enable(
    function: &Arc<dyn Function>,
    admin: &Admin,
    capabilities: &Capabilities,
) -> Result<(), End> {
    let css = match capabilities.css {
        css if css & Capabilities::CSS_NVM != 0 => 0b000,
        css if css & Capabilities::CSS_IO_COMMAND_SETS != 0 => 0b110,
        _ => return Err(End::Failed("it does not have the NVM command set".to_owned())),
    };
    let registers = function.registers();
    let (shape, submissions, completions) = admin.queues();
    let attributes =
        AdminQueueAttributes { asqs: shape.submissions - 1, acqs: shape.completions - 1 };
    registers.write32(offset::AQA, attributes.bits());
    registers.write64(offset::ASQ, submissions);
    registers.write64(offset::ACQ, completions);
    let on = Configuration { en: true, css, iosqes: 6, iocqes: 4, ..Configuration::default() };
    registers.write32(offset::CC, on.bits());
    Ok(())
}

/// Waits until a controller that is being enabled is ready.
pub(crate) async fn ready(
    function: &Arc<dyn Function>,
    time: &Rc<Time>,
    capabilities: &Capabilities,
) -> Result<(), End> {
    let patience = ready_timeout(function, capabilities);
    let settled = wait_for(function, time, patience, |status| status.rdy || status.cfs).await?;
    match status(function)? {
        ControllerStatus { cfs: true, .. } => {
            Err(End::Failed("it reports a fatal error when it is enabled".to_owned()))
        }
        _ if !settled => Err(End::Failed(format!("it is not ready within {patience:?}"))),
        _ => Ok(()),
    }
}

/// The longest that becoming ready, or not ready, takes.
fn ready_timeout(function: &Arc<dyn Function>, capabilities: &Capabilities) -> Duration {
    let of_media = match capabilities.crms & 1 {
        0 => 0,
        _ => function.registers().read32(offset::CRTO) & 0xFFFF,
    };
    let units = u32::from(capabilities.to).max(of_media).clamp(1, 600);
    Duration::from_millis(500) * units
}

/// Whether the status becomes so in time.
async fn wait_for(
    function: &Arc<dyn Function>,
    time: &Rc<Time>,
    patience: Duration,
    is: impl Fn(ControllerStatus) -> bool,
) -> Result<bool, End> {
    let until = time.now() + patience;
    loop {
        if is(status(function)?) {
            return Ok(true);
        }
        if time.now() >= until {
            return Ok(false);
        }
        time.sleep(POLL).await;
    }
}

impl<'a> Session<'a> {
    /// Enables the controller, which is disabled, with its admin queue.
    pub(crate) fn begin(
        shared: &'a Arc<Shared>,
        options: &'a Options,
        function: &'a Arc<dyn Function>,
        vectors: &'a [Arc<std::os::fd::OwnedFd>],
        time: &'a Rc<Time>,
    ) -> Result<Session<'a>, End> {
        let capabilities = capabilities(function)?;
        let queue = (capabilities.dstrd, u32::from(capabilities.mqes) + 1);
        let admin = Admin::new(function, time, options.admin_timeout, queue)?;
        enable(function, &admin, &capabilities)?;
        Ok(Session {
            shared,
            options,
            function,
            vectors,
            time,
            capabilities,
            end: RefCell::default(),
            aborting: Cell::new(0),
            served: Cell::new(None),
            admin,
            pages: RefCell::default(),
        })
    }

    /// Finds out what there is, makes the queues, has the reactors use them, and serves until something ends it.
    /// `attached` is who waits for the first session to have begun.
    pub(crate) async fn run(
        &mut self,
        attached: &RefCell<Option<Sender<Result<(), AttachError>>>>,
    ) -> End {
        match self.prepare().await {
            Ok((identity, seats)) => {
                self.served.set(Some(self.time.now()));
                let link = &self.shared.link;
                link.publish(State::Running(Seats::new(seats)));
                // Only when every reactor serves by it again is it said to be in service.
                self.time.wait(None, || link.is_acknowledged().then_some(())).await;
                self.shared.in_service(identity);
                if let Some(attached) = attached.take() {
                    // Whoever asked may have given up.
                    let _ = attached.send(Ok(()));
                }
                self.serve().await
            }
            Err(end) => end,
        }
    }

    async fn prepare(&mut self) -> Result<(scan::Controller, Vec<Seat>), End> {
        ready(self.function, self.time, &self.capabilities).await?;
        let version = Version::from_bits(self.function.registers().read32(offset::VS));
        let controller =
            self.admin_step("Identify", scan::Controller::find(&self.admin, version)).await?;
        if let Some(most) = controller.data_most() {
            self.admin.limit(usize::try_from(most).unwrap_or(usize::MAX));
        }
        let shadow = self.shadow_doorbells(&controller).await?;
        let seats = self.seats(shadow.as_ref()).await?;
        // Before the namespaces are looked for, so that no change of them is missed.
        self.admin_step("choosing events", self.want_events(&controller)).await?;
        self.scan(&controller).await?;
        Ok((controller, seats))
    }

    /// Carries out what is to be carried out while nothing else is going on.
    async fn admin_step<T>(
        &self,
        what: &str,
        step: impl Future<Output = Result<T, AdminError>>,
    ) -> Result<T, End> {
        let mut step = std::pin::pin!(step);
        poll_fn(|context| {
            self.admin.poll();
            if let Err(end) = status(self.function) {
                return Poll::Ready(Err(end));
            }
            self.time.call_at(self.time.now() + WATCH);
            step.as_mut().poll(context).map_err(failed(what))
        })
        .await
    }

    fn map(&self, bytes: usize, iova: u64) -> Result<Arc<crate::Pages>, End> {
        let pages = Arc::new(crate::Pages::new(bytes, iova)?);
        self.function.map(Mapping::pages(&pages))?;
        self.pages.borrow_mut().push(iova);
        Ok(pages)
    }

    /// How long the reactors have had it.
    pub(crate) fn lasted(&self) -> Duration {
        self.served.get().map_or(Duration::ZERO, |since| self.time.now().since(since))
    }

    /// Finds the namespaces.
    async fn scan(&self, controller: &scan::Controller) -> Result<(), End> {
        let found = self.admin_step("looking for namespaces", self.look(controller)).await?;
        self.shared.found(found);
        Ok(())
    }

    async fn look(
        &self,
        controller: &scan::Controller,
    ) -> Result<Vec<(u32, Result<scan::Namespace, String>)>, AdminError> {
        let mut found = Vec::new();
        for nsid in controller.namespaces(&self.admin).await? {
            if let Some(namespace) = controller.namespace(&self.admin, nsid).await? {
                found.push((nsid, namespace));
            }
        }
        Ok(found)
    }

    // The end.

    /// Takes the controller out of service: the reactors leave it, and it is disabled. What it then reaches no more may be let go of.
    pub(crate) async fn finish(self, end: End) -> End {
        let asked_for = end == End::Renewed;
        self.shared.link.publish(State::Paused { asked_for });
        self.time.wait(None, || self.shared.link.is_acknowledged().then_some(())).await;
        let disabled = match &end {
            // If it is there after all, the system is asking for it back.
            End::Removed => disable(self.function, self.time).await.and(Err(End::Removed)),
            End::Detached => {
                let _ = self.shut_down().await;
                disable(self.function, self.time).await
            }
            _ => disable(self.function, self.time).await,
        };
        for iova in self.pages.borrow().iter() {
            self.function.unmap(*iova);
        }
        match (disabled, end) {
            (_, End::Detached) => End::Detached,
            (Err(worse), _) => worse,
            (Ok(()), end) => end,
        }
    }

    /// Has it put in order what it has to before its power may go.
    async fn shut_down(&self) -> Result<(), End> {
        let registers = self.function.registers();
        let configuration = Configuration::from_bits(registers.read32(offset::CC));
        if status(self.function)?.cfs || !configuration.en {
            return Ok(());
        }
        let normal = Configuration { shn: ShutdownNotification::Normal, ..configuration };
        registers.write32(offset::CC, normal.bits());
        let said = self.shared.identify().map_or(0, |identify| identify.rtd3e.get());
        let patience = Duration::from_micros(said.into()).max(SHUTDOWN);
        let over = |status: ControllerStatus| status.shst == ShutdownStatus::Complete;
        if !wait_for(self.function, self.time, patience, over).await? {
            tracing::warn!("{}: has not shut down within {patience:?}", self.shared.name());
        }
        Ok(())
    }
}
