//! RDMA as clients of the control plane see it, over devices in memory and with a host that connects.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(missing_docs)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use control::controllers::Slots;
use control::jsonrpc::RpcError;
use control::methods;
use control::pages::NodePages;
use control::plane::{Libraries, Plane};
use control::server::Pages;
use control::state::State;
use control::store::Store;
use control::transports::Settings;
use control::waiting;
use host::{ConnectOptions, Controller};
use nvme::Nqn;
use nvme::address::TransportType;
use serde_json::{Value, json};
use testkit::fabric::Stepper;
use transport_rdma::RdmaConfig;
use verbs::software::DeviceOptions;
use verbs::{Fabric, OpenError};

mod support;

use support::{PATIENCE, blocking, call, free_port, identity, logs, node, try_call, until, within};

const NQN: &str = "nqn.2026-11.io.tidegate:rdma";
const TARGET: &str = "192.0.2.1";

/// A plane over software devices.
struct World {
    // Dropped after the node.
    plane: Arc<Plane>,
    fabric: Fabric,
    /// Whether the libraries can be opened.
    installed: Arc<AtomicBool>,
    _stepper: Stepper,
}

impl World {
    fn new(installed: bool, rdma: RdmaConfig) -> Self {
        let fabric = Fabric::new(1);
        fabric.add_device(DeviceOptions::new("soft0", TARGET.parse().unwrap()));
        let installed = Arc::new(AtomicBool::new(installed));
        let (opened, is_installed) = (fabric.clone(), Arc::clone(&installed));
        let libraries = Libraries::new(move || {
            let reason = "no such file".to_owned();
            let missing = OpenError::Missing { library: "libibverbs.so.1", reason };
            is_installed.load(Ordering::Relaxed).then(|| opened.library()).ok_or(missing)
        });
        let settings = Settings { rdma, ..Settings::default() };
        let plane =
            Plane::new(node(), Store::none(), settings, libraries, Slots::default(), logs());
        let stepper = Stepper::start(&fabric);
        Self { plane, fabric, installed, _stepper: stepper }
    }

    async fn try_call(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        try_call(&self.plane, method, params).await
    }

    async fn call(&self, method: &str, params: Value) -> Value {
        call(&self.plane, method, params).await
    }

    async fn begin(&self, state: State) {
        let plane = Arc::clone(&self.plane);
        let begun = tokio::task::spawn_blocking(move || {
            plane.begin(state, Duration::ZERO, false).map(drop).unwrap();
        });
        begun.await.unwrap();
    }

    fn options(&self, transport: TransportType, port: u16, subsystem: &str) -> ConnectOptions {
        let ip: IpAddr = match transport {
            TransportType::Rdma => TARGET.parse().unwrap(),
            _ => IpAddr::from([127, 0, 0, 1]),
        };
        let subsystem: Nqn = subsystem.parse().unwrap();
        ConnectOptions {
            transport,
            rdma: Some(self.fabric.library()),
            ..ConnectOptions::new(SocketAddr::new(ip, port), subsystem, identity())
        }
    }

    async fn connect(&self, transport: TransportType, port: u16, subsystem: &str) -> Controller {
        let options = self.options(transport, port, subsystem);
        tokio::task::spawn_blocking(move || Controller::connect(options)).await.unwrap().unwrap()
    }
}

fn listener(trtype: &str, traddr: &str, port: u16) -> Value {
    let address = json!({
        "trtype": trtype, "adrfam": "IPv4", "traddr": traddr, "trsvcid": port.to_string(),
    });
    json!({ "nqn": NQN, "listen_address": address })
}

/// The calls that export a RAM disk on both transports.
fn calls(port: u16) -> Vec<(&'static str, Value)> {
    let rdma = json!({
        "trtype": "RDMA", "max_queue_depth": 64, "max_io_qpairs_per_ctrlr": 3, "max_srq_depth": 4096,
        "no_srq": false, "num_cqe": 2048, "acceptor_backlog": 100, "no_wr_batching": false,
    });
    vec![
        ("nvmf_create_transport", rdma),
        ("nvmf_create_transport", json!({ "trtype": "tcp" })),
        ("bdev_malloc_create", json!({ "name": "ram", "num_blocks": 4096, "block_size": 4096 })),
        ("nvmf_create_subsystem", json!({ "nqn": NQN, "allow_any_host": true })),
        (
            "nvmf_subsystem_add_ns",
            json!({ "nqn": NQN, "namespace": { "bdev_name": "ram", "nsid": 1 } }),
        ),
        ("nvmf_subsystem_add_listener", listener("RDMA", TARGET, 4420)),
        ("nvmf_subsystem_add_listener", listener("TCP", "127.0.0.1", port)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subsystem_is_served_over_both_transports_at_once() {
    let world = World::new(true, RdmaConfig::default());
    let port = free_port();
    for (method, params) in calls(port) {
        world.call(method, params).await;
    }
    let transports = world.call("nvmf_get_transports", json!({ "trtype": "RDMA" })).await;
    // The least of what was asked, and of what the process settings allow.
    for (name, value) in [
        ("max_queue_depth", json!(64)),
        ("max_io_qpairs_per_ctrlr", json!(3)),
        ("in_capsule_data_size", json!(4096)),
        ("max_srq_depth", json!(1024)),
        ("num_cqe", json!(2048)),
        ("tidegate_waiting", Value::Null),
    ] {
        assert_eq!(transports[0][name], value, "{name}: {transports}");
    }
    let tcp = world.call("nvmf_get_transports", json!({ "trtype": "TCP" })).await;
    assert_eq!(tcp[0]["in_capsule_data_size"], 8192, "RDMA's is no bound of TCP's");

    let mut controllers = Vec::new();
    for (transport, port) in [(TransportType::Rdma, 4420), (TransportType::Tcp, port)] {
        let controller = world.connect(transport, port, NQN).await;
        let controller = blocking(move || {
            let mut controller = controller;
            assert_eq!(controller.request_queues(8).unwrap(), 3);
            assert_eq!(controller.namespaces().unwrap(), [1]);
            controller
        });
        controllers.push(controller.await);
    }
    let [over_rdma, over_tcp] = [&controllers[0], &controllers[1]].map(Controller::data);
    assert_eq!((over_rdma.sgls.get(), over_rdma.msdbd), (1 << 0 | 1 << 2 | 1 << 20, 16));
    assert_eq!((over_rdma.ioccsz.get(), over_rdma.icdoff.get()), ((64 + 4096) / 16, 0));
    assert_eq!((over_tcp.ioccsz.get(), over_tcp.msdbd), ((64 + 8192) / 16, 1));

    let pairs = world.call("nvmf_subsystem_get_qpairs", json!({ "nqn": NQN })).await;
    let mut addresses: Vec<_> = pairs.as_array().unwrap().iter().collect();
    addresses.sort_by_key(|pair| pair["listen_address"]["trtype"].to_string());
    let [rdma, tcp] = addresses[..] else { panic!("{pairs}") };
    assert_eq!(rdma["listen_address"], listener("RDMA", TARGET, 4420)["listen_address"]);
    assert_eq!(rdma["peer_address"]["trtype"], "RDMA");
    assert_eq!(tcp["listen_address"], listener("TCP", "127.0.0.1", port)["listen_address"]);
    assert_ne!(rdma["thread"], tcp["thread"], "both transports' hosts are spread together");

    let stats = world.call("nvmf_get_stats", Value::Null).await;
    let groups = stats["poll_groups"].as_array().unwrap();
    let devices = groups.iter().flat_map(|group| {
        assert_eq!(group["transports"][0], json!({ "trtype": "TCP" }));
        assert_eq!(group["transports"][1]["trtype"], "RDMA");
        group["transports"][1]["devices"].as_array().unwrap()
    });
    let requests: u64 = devices
        .map(|device| {
            assert_eq!(device["name"], "soft0");
            for name in ["completions", "total_send_wrs", "total_recv_wrs", "send_doorbell_updates"]
            {
                assert!(device[name].is_u64(), "{device}");
            }
            device["requests"].as_u64().unwrap()
        })
        .sum();
    assert!(requests > 3, "{stats}");

    let page = NodePages::new(Arc::clone(&world.plane)).metrics();
    for line in [
        "tidegate_rdma_connections{} 1",
        "tidegate_tcp_connections{} 1",
        "tidegate_rdma_device_up{device=\"soft0\"} 1",
        "tidegate_rdma_queue_pairs{device=\"soft0\"} 1",
        "tidegate_rdma_port_up{device=\"soft0\",port=\"1\"} 1",
        "tidegate_rdma_commands_total{device=\"soft0\",reactor=\"",
    ] {
        assert!(page.contains(line), "{line}: {page}");
    }

    // Discovery, over RDMA as over TCP, names both.
    let log = world.connect(TransportType::Rdma, 4420, nvme::nqn::DISCOVERY_NQN).await;
    let entries = blocking(move || {
        let mut log = log;
        let (_, entries) = log.discovery_log().unwrap();
        log.shutdown().unwrap();
        entries
    });
    let found: Vec<_> = entries.await.iter().map(|it| (it.trtype, it.tsas[0])).collect();
    // The TCP listener is on loopback, which nobody elsewhere is told of.
    assert_eq!(found, [(1, 1), (1, 1)]);

    world.call("nvmf_subsystem_remove_listener", listener("RDMA", TARGET, 4420)).await;
    let options = world.options(TransportType::Rdma, 4420, NQN);
    until("nobody listens there any more", async || {
        let options = options.clone();
        blocking(move || Controller::connect(options)).await.is_err()
    })
    .await;
    // Who came by it is disconnected, and nobody else.
    let ends = blocking(move || controllers.into_iter().map(|it| it.shutdown().is_ok()).collect());
    let ends: Vec<bool> = ends.await;
    assert_eq!(ends, [false, true]);
    let plane = Arc::clone(&world.plane);
    blocking(move || plane.node().shutdown(PATIENCE).unwrap()).await;
    assert_eq!(world.plane.node().connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_of_no_device_is_refused_and_what_was_prepared_for_it_is_given_back() {
    let world = World::new(true, RdmaConfig::default());
    let document = |traddr: &str| {
        let call = |(method, params)| json!({ "method": method, "params": params });
        let mut calls: Vec<_> = calls(free_port()).into_iter().map(call).collect();
        calls.push(call(("nvmf_subsystem_add_listener", listener("RDMA", traddr, 4421))));
        json!({ "subsystems": [{ "subsystem": "nvmf", "config": calls }] })
    };
    let refused = world.try_call("load_config", document("192.0.2.9")).await.unwrap_err();
    assert!(refused.message.contains("192.0.2.9:4421"), "{}", refused.message);
    assert_eq!(world.call("nvmf_get_transports", Value::Null).await, json!([]));
    assert!(world.plane.node().rdma().is_none());
    // All of it can be had again, addresses included.
    within("the manager has ended", async {
        while world.fabric.census()[5] > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    world.call("load_config", document(TARGET)).await;
    assert!(world.plane.node().rdma().is_some());
    assert_eq!(world.plane.unbound(), []);
    let saved = world.call("save_config", Value::Null).await;
    assert_eq!(
        methods::objects(&saved.to_string()).unwrap(),
        world.plane.state().objects(),
        "what is saved is what there is"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_with_rdma_is_served_without_it_until_it_can_run() {
    let world = World::new(false, RdmaConfig { shared_receives: 256, ..RdmaConfig::default() });
    let document = json!({ "subsystems": [{
        "subsystem": "nvmf",
        "config": calls(free_port())
            .into_iter()
            .filter(|(method, _)| method.starts_with("nvmf") && !method.ends_with("add_ns"))
            .map(|(method, params)| json!({ "method": method, "params": params }))
            .collect::<Vec<_>>(),
    }] });
    let objects = methods::objects(&document.to_string()).unwrap();
    world.begin(State::from(objects)).await;
    let waiting = world.call("nvmf_get_transports", json!({ "trtype": "RDMA" })).await;
    assert!(waiting[0]["tidegate_waiting"].as_str().unwrap().contains("libibverbs1"), "{waiting}");
    assert_eq!(world.plane.unbound().len(), 1);
    // What is configured meanwhile is configured.
    let other = json!({ "nqn": "nqn.2026-11.io.tidegate:other" });
    world.call("nvmf_create_subsystem", other).await;

    let trying = tokio::spawn(waiting::try_again_and_again(Arc::clone(&world.plane)));
    world.installed.store(true, Ordering::Relaxed);
    until("RDMA is there", async || world.plane.unbound().is_empty()).await;
    let there = world.call("nvmf_get_transports", json!({ "trtype": "RDMA" })).await;
    assert_eq!(there[0]["tidegate_waiting"], Value::Null);
    let controller = world.connect(TransportType::Rdma, 4420, NQN).await;
    blocking(move || controller.shutdown().unwrap()).await;
    trying.abort();
}
