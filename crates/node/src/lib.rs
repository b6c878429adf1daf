//! A running storage node: reactors, and on each of them a column of shard and transports.
//!
//! Everything here runs on the caller's threads and may block; the reactors are reached by letters
//! and messages only. The order of a start is the order of promises: memory and reactors first,
//! then what is exported, and the listeners last, so that no host connects to a node that does not
//! know its subsystems yet.

mod column;
mod inbox;
mod transports;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use memory::{Arena, ArenaConfig, ArenaReport, Hugepages, SLAB_SIZE, SharedMemory};
use nvme::address::{TransportAddress, TransportType};
use nvme_pcie::function::Slot;
use nvme_pcie::{AttachError, Controller, Options};
pub use reactor::CounterValues as ReactorCounters;
use reactor::{IdlePolicy, Local, Placement, ReactorConfig, ReactorError, Reactors};
use target::configuration::Configuration;
use target::shard::report::{ControllerReport, Page, QueueReport};
use target::{PortId, Shard, ShardConfig, ShardIndex, ShardLimits};
use transport_rdma::{RdmaConfig, RdmaError, RdmaNetwork};
use transport_tcp::{CounterValues, TcpConfig, TcpNetwork, TcpTransport};
use verbs::Library;

use column::{ShardPoller, shard_time};
pub use inbox::Census;
use inbox::{Inbox, Letter};
use transports::Taken;
pub use transports::{BindError, Listener, Rdma};

/// Threads for work that may block, shared by all reactors.
const WORKERS: usize = 4;
/// How long a reactor may take to acknowledge a letter; it does so within a turn.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a reactor that is asked when time is up already may take to say what it still has: on a
/// loaded machine it may not run at once, and the names are what the user needs.
const LAST_WORD: Duration = Duration::from_millis(250);
/// How long hosts that have been sent everything may take to close, though time is up.
const FAREWELL: Duration = Duration::from_secs(2);
/// The TCP transport's port at every shard.
const TCP: PortId = PortId(0);
/// The RDMA transport's.
const RDMA: PortId = PortId(1);

/// What a node is made of.
#[derive(Debug)]
pub struct NodeConfig {
    /// One reactor each.
    pub reactors: Vec<ReactorConfig>,
    /// Bytes of buffers for data in flight, of each reactor.
    pub memory_per_reactor: usize,
    /// Whether to try hugepages.
    pub hugepages: Hugepages,
    /// The NVMe/TCP transport.
    pub tcp: TcpConfig,
    /// Bounds of each shard.
    pub limits: ShardLimits,
}

/// Why a node did not start, or did not take a change. One line each.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The reactors could not be started.
    #[error(transparent)]
    Reactors(#[from] ReactorError),
    /// A reactor could not set up its column.
    #[error("reactor {reactor}: {problem}")]
    Column {
        /// Index of the reactor.
        reactor: usize,
        /// What is wrong.
        problem: String,
    },
    /// A reactor does not answer.
    #[error("reactor {reactor} does not answer within {PATIENCE:?}")]
    Silent {
        /// Index of the reactor.
        reactor: usize,
    },
    /// An address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] BindError),
    /// There is no RDMA on this machine now.
    #[error(transparent)]
    Rdma(#[from] RdmaError),
}

/// What did not end in time: one line that names it all.
#[derive(Debug, thiserror::Error)]
#[error("stuck at shutdown: {}", .0.join("; "))]
pub struct Stuck(pub Vec<String>);

/// A running node.
#[derive(Debug)]
pub struct Node {
    arena: Arena,
    /// Behind a lock for the one who ends them.
    reactors: Mutex<Reactors>,
    inboxes: Vec<Inbox>,
    /// Chooses a reactor for each connection, whatever its transport.
    placement: Placement,
    tcp: TcpNetwork,
    /// Once it was added.
    rdma: OnceLock<Rdma>,
    /// What is in force.
    configured: Mutex<Arc<Configuration>>,
    /// The core and the idle policy of each reactor.
    places: Vec<(Option<usize>, IdlePolicy)>,
}

/// A reactor as others see it.
#[derive(Debug, Clone)]
pub struct Reactor {
    /// The core that it was given.
    pub core: Option<usize>,
    /// It may sleep when there is nothing to do.
    pub sleeps: bool,
    /// The names of its pollers.
    pub pollers: Vec<&'static str>,
    /// What it has counted.
    pub counters: ReactorCounters,
}

impl Node {
    /// Starts the reactors with nothing to export yet.
    ///
    /// # Errors
    /// [`NodeError`] if threads, descriptors or memory are refused.
    pub fn start(config: NodeConfig) -> Result<Node, NodeError> {
        let count = config.reactors.len();
        let pool = config.memory_per_reactor.div_ceil(SLAB_SIZE) * SLAB_SIZE;
        let arena = Arena::new(ArenaConfig { capacity: pool * count, hugepages: config.hugepages });
        let places = config.reactors.iter().map(|it| (it.core, it.idle)).collect();
        let reactors = reactor::spawn(config.reactors, WORKERS)?;
        let inboxes: Vec<_> = reactors.handles().iter().cloned().map(Inbox::new).collect();
        let placement = Placement::new(reactors.handles());
        let tcp = TcpNetwork::new(config.tcp, reactors.handles(), placement.clone());
        let mut acknowledged = Vec::new();
        for handle in reactors.handles() {
            let (done, answer) = mpsc::channel();
            let column = Column {
                arena: arena.clone(),
                pool,
                inboxes: inboxes.clone(),
                tcp: tcp.clone(),
                limits: config.limits.clone(),
            };
            // Nobody listens for the answer any more if another reactor has failed.
            let build = move |local: &Local| drop(done.send(column.build(local)));
            if handle.send(build).is_err() {
                return Err(NodeError::Silent { reactor: handle.index() });
            }
            acknowledged.push((handle.index(), answer));
        }
        collect(acknowledged)?;
        let (reactors, rdma) = (Mutex::new(reactors), OnceLock::new());
        let configured = Mutex::new(Configuration::empty());
        Ok(Node { arena, reactors, inboxes, placement, tcp, rdma, configured, places })
    }

    /// Starts RDMA for this node: addresses can be taken, and no host is served before [`Node::add_rdma`].
    ///
    /// # Errors
    /// [`NodeError::Rdma`], with what to do about it.
    pub fn prepare_rdma(&self, config: RdmaConfig, library: Library) -> Result<Rdma, NodeError> {
        let reactors: Vec<_> = self.inboxes.iter().map(|it| it.reactor().clone()).collect();
        let (arena, placement) = (self.arena.clone(), self.placement.clone());
        Ok(Rdma::new(RdmaNetwork::start(config, library, arena, placement, &reactors)?))
    }

    /// Has every reactor serve hosts over RDMA from now on. A node that does so already goes on with what it has.
    ///
    /// # Errors
    /// [`NodeError::Silent`].
    pub fn add_rdma(&self, rdma: Rdma) -> Result<(), NodeError> {
        let network = rdma.network().clone();
        if self.rdma.set(rdma).is_err() {
            return Ok(());
        }
        network.lend(media(&self.configured.lock().unwrap_or_else(PoisonError::into_inner)));
        collect(self.ask(|done| Letter::AddRdma(network.clone(), done))?)
    }

    /// Both at once.
    ///
    /// # Errors
    /// As both.
    pub fn start_rdma(&self, config: RdmaConfig, library: Library) -> Result<(), NodeError> {
        self.add_rdma(self.prepare_rdma(config, library)?)
    }

    /// RDMA, if the node serves hosts over it.
    pub fn rdma(&self) -> Option<&Rdma> {
        self.rdma.get()
    }

    /// Attaches an NVMe controller for this node's reactors and their memory. Blocks until it is in service.
    ///
    /// # Errors
    /// Why it cannot be had, or used.
    pub fn attach(
        &self,
        name: &str,
        slot: Arc<dyn Slot>,
        options: &Options,
    ) -> Result<Controller, AttachError> {
        Controller::attach(name, slot, &self.arena, self.inboxes.len(), options)
    }

    /// Puts a configuration in force on every reactor; back when it is.
    ///
    /// # Errors
    /// [`NodeError`] if a reactor cannot open what it names.
    pub fn configure(&self, configuration: &Arc<Configuration>) -> Result<(), NodeError> {
        collect(self.ask(|done| Letter::Configure(Arc::clone(configuration), done))?)?;
        let mut configured = self.configured.lock().unwrap_or_else(PoisonError::into_inner);
        configured.clone_from(configuration);
        if let Some(rdma) = self.rdma() {
            rdma.network().lend(media(configuration));
        }
        Ok(())
    }

    /// Listens on these addresses, waiting up to `patience` for each that is still in use. None accepts
    /// connections before all are there; then hosts may connect. The addresses, with the port that the
    /// system chose where one has 0.
    ///
    /// # Errors
    /// [`NodeError::Listen`], naming the address.
    pub fn listen(
        &self,
        addresses: &[TransportAddress],
        patience: Duration,
    ) -> Result<Vec<TransportAddress>, NodeError> {
        let listeners = addresses.iter().map(|address| self.bind(*address, patience));
        let listeners: Vec<_> = listeners.collect::<Result<_, _>>()?;
        let addresses = listeners.iter().map(Listener::address).collect();
        for listener in listeners {
            self.accept_on(listener);
        }
        Ok(addresses)
    }

    /// Takes an address, waiting up to `patience` for one in use. **Blocks.**
    ///
    /// # Errors
    /// [`BindError`], naming the address.
    pub fn bind(
        &self,
        address: TransportAddress,
        patience: Duration,
    ) -> Result<Listener, BindError> {
        match (address.trtype, self.rdma()) {
            (TransportType::Tcp, _) => Listener::tcp(address.socket(), patience),
            (TransportType::Rdma, Some(rdma)) => rdma.bind(address.socket(), patience),
            _ => Err(BindError::NoTransport(address)),
        }
    }

    /// Accepts hosts on a listener from now on.
    pub fn accept_on(&self, listener: Listener) {
        match listener.0 {
            Taken::Tcp(listener) => self.tcp.listen(listener),
            Taken::Rdma(listener) => listener.admit(),
        }
    }

    /// Closes the listener on an address soon; its connections stay.
    pub fn unlisten(&self, address: TransportAddress) {
        match (address.trtype, self.rdma()) {
            (TransportType::Tcp, _) => self.tcp.unlisten(address.socket()),
            (TransportType::Rdma, Some(rdma)) => rdma.network().unlisten(address.socket()),
            _ => {}
        }
    }

    /// Memory for data in flight.
    pub fn memory(&self) -> ArenaReport {
        self.arena.report()
    }

    /// What the NVMe/TCP transport has counted, on all reactors together.
    pub fn tcp_counters(&self) -> CounterValues {
        self.tcp.total()
    }

    /// Connections being served, over NVMe/TCP and over NVMe/RDMA.
    pub fn connections(&self) -> usize {
        let over_rdma = self.rdma().map_or(0, |rdma| rdma.network().connections());
        self.tcp_connections().saturating_add(over_rdma)
    }

    /// NVMe/TCP connections being served.
    pub fn tcp_connections(&self) -> usize {
        self.tcp.connections()
    }

    /// How many shards the target has: one on each reactor.
    pub fn shards(&self) -> u16 {
        u16::try_from(self.inboxes.len()).unwrap_or(u16::MAX)
    }

    /// What is known of each reactor without asking it.
    pub fn reactors(&self) -> Vec<Reactor> {
        let each = self.inboxes.iter().map(Inbox::reactor).zip(&self.places);
        each.map(|(handle, (core, idle))| Reactor {
            core: *core,
            sleeps: *idle != IdlePolicy::Poll,
            pollers: handle.pollers(),
            counters: handle.counters(),
        })
        .collect()
    }

    /// What each shard has in use.
    ///
    /// # Errors
    /// [`NodeError::Silent`].
    pub fn census(&self) -> Result<Vec<Census>, NodeError> {
        let answers = self.ask(Letter::Census)?;
        let answer = |(reactor, answer): (usize, Receiver<Census>)| {
            answer.recv_timeout(PATIENCE).map_err(|_| NodeError::Silent { reactor })
        };
        answers.into_iter().map(answer).collect()
    }

    /// The controllers that there are, of every shard in turn.
    ///
    /// # Errors
    /// [`NodeError::Silent`].
    pub fn controllers(&self) -> Result<Vec<ControllerReport>, NodeError> {
        let each = self.inboxes.iter().enumerate();
        let each = each.map(|(reactor, inbox)| list(reactor, inbox, Letter::Controllers));
        Ok(each.collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// The queues that there are, by reactor.
    ///
    /// # Errors
    /// [`NodeError::Silent`].
    pub fn queues(&self) -> Result<Vec<Vec<QueueReport>>, NodeError> {
        let each = self.inboxes.iter().enumerate();
        each.map(|(reactor, inbox)| list(reactor, inbox, Letter::Queues)).collect()
    }

    /// Refuses what is new, lets what is in flight finish and reach its medium, and ends the
    /// reactors, all within `timeout`.
    ///
    /// # Errors
    /// [`Stuck`], naming what did not finish.
    pub fn shutdown(&self, timeout: Duration) -> Result<(), Stuck> {
        let until = Instant::now() + timeout;
        for inbox in &self.inboxes {
            post(inbox, || Letter::BeginShutdown, until);
        }
        let mut stuck = self.wait_while(until, |node| node.undrained(until));
        self.tcp.shutdown();
        if let Some(rdma) = self.rdma() {
            rdma.network().shutdown();
        }
        // Answers that are on their way leave before the connections close.
        let farewell = if stuck.is_empty() { until.max(Instant::now() + FAREWELL) } else { until };
        let open = self.wait_while(farewell, |node| match node.connections() {
            0 => Vec::new(),
            open => vec![format!("{open} hosts do not take what was sent to them")],
        });
        if stuck.is_empty() {
            // Otherwise they are open because of what is stuck.
            stuck = open;
        }
        let mut reactors = self.reactors.lock().unwrap_or_else(PoisonError::into_inner);
        reactors.stop();
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        if let Err(error) = reactors.join(left) {
            stuck.push(error.to_string());
        }
        // Last: it destroys what the reactors let go of.
        if let Some(rdma) = self.rdma() {
            rdma.network().stop();
        }
        if stuck.is_empty() { Ok(()) } else { Err(Stuck(stuck)) }
    }

    /// What the shards still have in flight.
    fn undrained(&self, until: Instant) -> Vec<String> {
        let mut stuck = Vec::new();
        for (reactor, answer) in self.ask(Letter::Drained).unwrap_or_default() {
            let left = until.saturating_duration_since(Instant::now());
            match answer.recv_timeout(left.max(LAST_WORD)) {
                Ok(Ok(())) => {}
                Ok(Err(names)) => stuck.extend(names),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    stuck.push(format!("reactor {reactor} does not answer"));
                }
            }
        }
        stuck
    }

    /// Asks again and again until nothing is left, or it is too late; what was left.
    fn wait_while(&self, until: Instant, left: impl Fn(&Node) -> Vec<String>) -> Vec<String> {
        loop {
            let stuck = left(self);
            if stuck.is_empty() || Instant::now() >= until {
                return stuck;
            }
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }

    /// Posts a letter to every shard; where their answers will come.
    fn ask<T>(
        &self,
        letter: impl Fn(Sender<T>) -> Letter,
    ) -> Result<Vec<(usize, Receiver<T>)>, NodeError> {
        let until = Instant::now() + PATIENCE;
        let mut answers = Vec::new();
        for (reactor, inbox) in self.inboxes.iter().enumerate() {
            let (done, answer) = mpsc::channel();
            if !post(inbox, || letter(done.clone()), until) {
                return Err(NodeError::Silent { reactor });
            }
            answers.push((reactor, answer));
        }
        Ok(answers)
    }
}

/// The memory that devices consist of.
fn media(configuration: &Configuration) -> Vec<Arc<SharedMemory>> {
    let namespaces = configuration.subsystems().iter().flat_map(|it| it.namespaces());
    namespaces.filter_map(|it| it.device()?.medium().cloned()).collect()
}

/// Posts a letter, waiting for room until then; whether it went.
fn post(inbox: &Inbox, letter: impl Fn() -> Letter, until: Instant) -> bool {
    while inbox.post(letter()).is_err() {
        if Instant::now() >= until {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    true
}

/// Asks a shard for everything of a kind, page by page.
fn list<T>(
    reactor: usize,
    inbox: &Inbox,
    letter: fn(u32, Sender<Page<T>>) -> Letter,
) -> Result<Vec<T>, NodeError> {
    let until = Instant::now() + PATIENCE;
    let silent = NodeError::Silent { reactor };
    let (mut items, mut from) = (Vec::new(), Some(0));
    while let Some(next) = from {
        let (done, answer) = mpsc::channel();
        if !post(inbox, || letter(next, done.clone()), until) {
            return Err(silent);
        }
        let left = until.saturating_duration_since(Instant::now());
        let Ok(page) = answer.recv_timeout(left) else { return Err(silent) };
        items.extend(page.items);
        from = page.next;
    }
    Ok(items)
}

/// Waits for every reactor's answer; the first failure.
fn collect(answers: Vec<(usize, Receiver<Result<(), String>>)>) -> Result<(), NodeError> {
    for (reactor, answer) in answers {
        match answer.recv_timeout(PATIENCE) {
            Ok(Ok(())) => {}
            Ok(Err(problem)) => return Err(NodeError::Column { reactor, problem }),
            Err(_) => return Err(NodeError::Silent { reactor }),
        }
    }
    Ok(())
}

/// What a reactor needs to set up its column.
struct Column {
    arena: Arena,
    pool: usize,
    inboxes: Vec<Inbox>,
    tcp: TcpNetwork,
    limits: ShardLimits,
}

impl Column {
    /// Sets it up, on the reactor's thread.
    fn build(self, local: &Local) -> Result<(), String> {
        let pool = self.arena.pool(self.pool).map_err(|error| error.to_string())?;
        if let Some(ring) = local.ring() {
            ring.register_pool(&pool);
        }
        let shard = Shard::new(ShardConfig {
            index: ShardIndex(u16::try_from(local.index()).map_err(|error| error.to_string())?),
            shards: u16::try_from(local.reactors()).map_err(|error| error.to_string())?,
            pool: pool.clone(),
            limits: self.limits,
            now: shard_time(local.now()),
        });
        let shard = Rc::new(RefCell::new(shard));
        let inboxes: Rc<[Inbox]> = self.inboxes.into();
        let poller = ShardPoller::new(Rc::clone(&shard), pool, local.clone(), inboxes);
        local.add_poller(Box::new(poller));
        TcpTransport::start(&self.tcp, local, shard, TCP);
        Ok(())
    }
}
