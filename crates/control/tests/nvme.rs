//! NVMe controllers as clients of the control plane see them: controllers in memory, which work by themselves, and a host that
//! reads and writes over TCP.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(missing_docs)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE;
use control::controllers::Slots;
use control::jsonrpc::RpcError;
use control::methods;
use control::objects::Place;
use control::plane::{Libraries, Plane};
use control::state::State;
use control::store::Store;
use control::transports::Settings;
use control::waiting;
use host::Transfer;
use host::{ConnectOptions, Controller};
use nvme::admin::{Command, Identify};
use nvme::identify::Cns;
use nvme::io::{Command as Io, Transfer as Blocks};
use nvme::{Sqe, Status};
use nvme_pcie::software::{self, NamespaceOptions, Options};
use serde_json::{Value, json};
use testkit::fabric::Stepper;
use verbs::{Library, OpenError};
use zerocopy::IntoBytes;

use support::{PATIENCE, blocking, call, free_port, identity, logs, node, try_call, until};

const NQN: &str = "nqn.2026-11.io.tidegate:nvme";
const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:02:00.0";

/// A plane on a machine with two controllers.
struct World {
    // Dropped after the node.
    plane: Arc<Plane>,
    soft: [software::Controller; 2],
    _stepper: Stepper,
}

fn no_rdma() -> Libraries {
    Libraries::new(|| -> Result<Library, OpenError> {
        let reason = "no such file".to_owned();
        Err(OpenError::Missing { library: "libibverbs.so.1", reason })
    })
}

impl World {
    fn new() -> Self {
        let soft = [(FIRST, "S1"), (SECOND, "S2")].map(|(address, serial)| {
            let options = Options {
                address: address.to_owned(),
                serial: serial.to_owned(),
                ..Options::default()
            };
            software::Controller::new(7, options)
        });
        let (slots, stepped) = (soft.clone(), soft.clone());
        let slots = Slots::new(move |place| {
            let [first, second] = slots.clone();
            Arc::new(match place {
                Place::Pci(address) if address == FIRST => first,
                Place::Serial(serial) if serial == "S1" => first,
                _ => second,
            })
        });
        let settings = Settings::default();
        let plane = Plane::new(node(), Store::none(), settings, no_rdma(), slots, logs());
        // Each has its turn, whether or not the others have anything to do.
        let step = move || stepped.iter().fold(false, |moved, soft| soft.step() | moved);
        Self { plane, soft, _stepper: Stepper::run(step) }
    }

    async fn try_call(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        try_call(&self.plane, method, params).await
    }

    async fn call(&self, method: &str, params: Value) -> Value {
        call(&self.plane, method, params).await
    }

    async fn attach(&self, name: &str, address: &str) -> Value {
        let params = json!({ "name": name, "trtype": "PCIe", "traddr": address });
        self.call("bdev_nvme_attach_controller", params).await
    }

    async fn state_of(&self, name: &str) -> String {
        let found = self.call("bdev_nvme_get_controllers", json!({ "name": name })).await;
        found[0]["ctrlrs"][0]["state"].as_str().unwrap().to_owned()
    }

    async fn begin(&self, state: State) {
        let plane = Arc::clone(&self.plane);
        blocking(move || plane.begin(state, Duration::ZERO, true).map(drop).unwrap()).await;
    }

    /// Exports a device, and connects to it.
    async fn export(&self, device: &str) -> Controller {
        let port = free_port();
        let address = json!({
            "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string(),
        });
        for (method, params) in [
            ("nvmf_create_transport", json!({ "trtype": "TCP" })),
            ("nvmf_create_subsystem", json!({ "nqn": NQN, "allow_any_host": true })),
            ("nvmf_subsystem_add_ns", json!({ "nqn": NQN, "namespace": { "bdev_name": device } })),
            ("nvmf_subsystem_add_listener", json!({ "nqn": NQN, "listen_address": address })),
        ] {
            self.call(method, params).await;
        }
        let address: SocketAddr = ([127, 0, 0, 1], port).into();
        let options = ConnectOptions::new(address, NQN.parse().unwrap(), identity());
        blocking(move || Controller::connect(options)).await.unwrap()
    }

    /// Everything is given back, and nobody did anything wrong.
    async fn end(self) {
        let plane = Arc::clone(&self.plane);
        blocking(move || {
            plane.node().shutdown(PATIENCE).unwrap();
            plane.detach_controllers();
        })
        .await;
        for soft in &self.soft {
            assert!(!soft.is_open());
            assert_eq!(soft.violations(), Vec::<String>::new());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_is_attached_described_and_detached() {
    let world = World::new();
    let params = json!({
        "name": "Nvme0", "trtype": "pcie", "traddr": "01:00.0", "adrfam": "ipv4", "hdgst": false,
        "multipath": "multipath", "num_io_queues": 1, "ctrlr_loss_timeout_sec": 10,
        "reconnect_delay_sec": 2, "fast_io_fail_timeout_sec": 5, "max_bdevs": 1,
    });
    assert_eq!(world.call("bdev_nvme_attach_controller", params).await, json!(["Nvme0n1"]));
    assert_eq!(world.soft[0].queues().submission.len(), 1);
    let controller = json!({
        "state": "enabled", "trid": { "trtype": "PCIe", "traddr": FIRST }, "cntlid": 1,
        "host": { "nqn": "", "addr": "", "svcid": "", "no_shn_notification": false },
    });
    let mut found = world.call("bdev_nvme_get_controllers", Value::Null).await;
    let cntlid = found[0]["ctrlrs"][0]["cntlid"].take();
    found[0]["ctrlrs"][0]["cntlid"] = json!(1);
    assert_eq!(found, json!([{ "name": "Nvme0", "ctrlrs": [controller] }]));

    let uuid = "50f70000-0000-4000-8000-000000000001";
    let bdev = world.call("bdev_get_bdevs", json!({ "name": uuid })).await;
    assert_eq!((&bdev[0]["name"], &bdev[0]["uuid"]), (&json!("Nvme0n1"), &json!(uuid)));
    assert_eq!(bdev[0]["aliases"], json!([uuid]));
    assert_eq!((&bdev[0]["block_size"], &bdev[0]["num_blocks"]), (&json!(512), &json!(128 << 10)));
    let about = &bdev[0]["driver_specific"]["nvme"][0];
    assert_eq!(about["pci_address"], FIRST);
    assert_eq!(about["vs"]["nvme_version"], "2.0");
    assert_eq!(about["ns_data"], json!({ "id": 1, "can_share": false }));
    let data = &about["ctrlr_data"];
    for (name, value) in [
        ("cntlid", cntlid.clone()),
        ("model_number", json!("Software Controller")),
        ("serial_number", json!("S1")),
        ("firmware_revision", json!("1.0")),
        ("multi_ctrlr", json!(false)),
        ("ana_reporting", json!(false)),
    ] {
        assert_eq!(data[name], value, "{name}: {data}");
    }
    assert_eq!(data["oacs"]["firmware"], 1);

    let saved = world.call("save_config", Value::Null).await;
    assert_eq!(methods::objects(&saved.to_string()).unwrap(), world.plane.state().objects());

    let detach = |params: Value| world.try_call("bdev_nvme_detach_controller", params);
    let elsewhere = json!({ "name": "Nvme0", "trtype": "PCIe", "traddr": SECOND });
    assert_eq!(detach(elsewhere).await.unwrap_err().code, -6);
    assert_eq!(detach(json!({ "name": "Nvme0", "trtype": "TCP" })).await.unwrap_err().code, -6);
    assert_eq!(detach(json!({ "name": "Nvme1" })).await.unwrap_err().code, -19);
    detach(json!({ "name": "Nvme0", "trtype": "PCIe", "traddr": FIRST })).await.unwrap();
    assert_eq!(world.call("bdev_get_bdevs", Value::Null).await, json!([]));
    assert!(!world.soft[0].is_open(), "it has been given back when the call is answered");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_attached_already_or_cannot_be_is_refused_as_spdk_does() {
    let world = World::new();
    let attach = |more: Value| {
        let mut params = json!({ "name": "Nvme0", "trtype": "PCIe", "traddr": FIRST });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.try_call("bdev_nvme_attach_controller", params)
    };
    world.soft[1].remove();
    let second = attach(json!({ "traddr": SECOND })).await.unwrap_err();
    assert_eq!(second.code, -19);
    assert!(second.message.contains(SECOND), "{second}");
    world.soft[1].insert();
    attach(json!({})).await.unwrap();
    for (more, code, text) in [
        (
            json!({}),
            -114,
            "A controller named Nvme0 already exists with the specified network path",
        ),
        (
            json!({ "multipath": "disable" }),
            -114,
            "A controller named Nvme0 already exists and multipath is disabled",
        ),
        (json!({ "traddr": SECOND }), -22, "a second path is not supported"),
        (json!({ "name": "Nvme1" }), -17, "controller Nvme0 is attached there"),
    ] {
        let refused = attach(more.clone()).await.unwrap_err();
        assert_eq!(refused.code, code, "{more}: {refused}");
        assert!(refused.message.contains(text), "{more}: {refused}");
    }
    world.soft[1].add_namespace(&NamespaceOptions::new(2, 4096, 1000));
    let many = attach(json!({ "name": "Nvme1", "traddr": SECOND, "max_bdevs": 1 })).await;
    assert_eq!(many.unwrap_err().code, -34);
    assert!(!world.soft[1].is_open(), "nothing has changed");
    let options = world.try_call("bdev_nvme_set_options", json!({ "timeout_us": 5 })).await;
    assert_eq!(options.unwrap_err().code, -1);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn options_hold_for_what_is_attached_later_and_are_kept() {
    let world = World::new();
    let set = |params: Value| world.try_call("bdev_nvme_set_options", params);
    // As SPDK's client and its files have them.
    set(json!({
        "action_on_timeout": "none", "timeout_us": 0, "timeout_admin_us": 0,
        "keep_alive_timeout_ms": 10_000, "arbitration_burst": 0, "transport_retry_count": 4,
        "nvme_adminq_poll_period_us": 10_000, "nvme_ioq_poll_period_us": 0, "io_queue_requests": 0,
        "delay_cmd_submit": true, "bdev_retry_count": 3, "transport_ack_timeout": 0,
        "ctrlr_loss_timeout_sec": 0, "reconnect_delay_sec": 0, "fast_io_fail_timeout_sec": 0,
    }))
    .await
    .unwrap();
    assert_eq!(world.plane.state().nvme_options, control::objects::NvmeOptions::default());
    set(json!({ "timeout_us": 1_000_000, "action_on_timeout": "reset" })).await.unwrap();
    set(json!({ "ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 1 })).await.unwrap();
    assert_eq!(set(json!({ "reconnect_delay_sec": 0 })).await.unwrap_err().code, -22);
    assert_eq!(set(json!({ "timeout_us": 0, "timeout_admin_us": 9 })).await.unwrap_err().code, -22);
    world.attach("Nvme0", FIRST).await;
    let state = world.plane.state();
    assert_eq!(state.nvme_options.timeout_us, 1_000_000);
    assert_eq!(state.controllers["Nvme0"].object.loss.ctrlr_loss_timeout_sec, -1);
    let saved = world.call("save_config", Value::Null).await;
    assert_eq!(methods::objects(&saved.to_string()).unwrap(), state.objects());
    drop(state);

    // A command that hangs leads to a reset at once, and is answered after that.
    let remote = world.export("Nvme0n1").await;
    let hang = software::Fault::Hangs;
    world.soft[0].plan(software::Target::Io(nvme::io::Opcode::Read), hang);
    blocking(move || {
        let mut remote = remote;
        let mut queue = remote.open_queue(1, 4, 4096).unwrap();
        assert_eq!(read(&mut queue, 0), Ok(vec![0; 512]));
        remote.shutdown().unwrap();
    })
    .await;
    let state = world.plane.state();
    let incidents = state.controllers["Nvme0"].controller.as_ref().unwrap().incidents();
    assert_eq!((incidents.aborts, incidents.resets), (0, 1));
    drop(state);
    world.end().await;
}

fn read(queue: &mut host::Queue, lba: u64) -> Result<Vec<u8>, Status> {
    let slot = queue.reserve().unwrap();
    let read = Io::Read(Blocks::new(lba, 1)).to_sqe(1);
    let ended = queue.call(slot, read, Transfer::Read(512), PATIENCE, "a read").unwrap();
    let mut found = vec![0; 512];
    queue.copy_to(slot, 0, &mut found);
    queue.release(slot);
    ended.cqe.status().into_result().map(|()| found)
}

fn write(queue: &mut host::Queue, lba: u64, bytes: &[u8; 512]) -> Result<(), Status> {
    let slot = queue.reserve().unwrap();
    queue.copy_from(slot, 0, bytes);
    let write = Io::Write(Blocks::new(lba, 1)).to_sqe(1);
    let ended = queue.call(slot, write, Transfer::Write(512), PATIENCE, "a write").unwrap();
    queue.release(slot);
    ended.cqe.status().into_result()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_notices_nothing_of_resets_and_answers_come_when_they_are_over() {
    let world = World::new();
    world.attach("Nvme0", FIRST).await;
    let remote = world.export("Nvme0n1").await;
    let traffic = tokio::task::spawn_blocking(move || {
        let mut remote = remote;
        let mut queue = remote.open_queue(1, 4, 4096).unwrap();
        for round in 0..200_u8 {
            write(&mut queue, u64::from(round) % 7, &[round; 512]).unwrap();
            assert_eq!(read(&mut queue, u64::from(round) % 7), Ok(vec![round; 512]));
        }
        (remote, queue)
    });
    let reset = json!({ "name": "Nvme0" });
    for _ in 0..6 {
        assert_eq!(world.call("bdev_nvme_reset_controller", reset.clone()).await, true);
        assert_eq!(world.state_of("Nvme0").await, "enabled");
    }
    let (remote, queue) = traffic.await.unwrap();
    let paths = world.call("bdev_nvme_get_io_paths", json!({ "name": "Nvme0n1" })).await;
    let groups = paths["poll_groups"].as_array().unwrap();
    assert_eq!(groups.len(), 2);
    for group in groups {
        let path = &group["io_paths"][0];
        for name in ["current", "connected", "accessible"] {
            assert_eq!(path[name], true, "{path}");
        }
        assert_eq!(path["transport"], json!({ "trtype": "PCIe", "traddr": FIRST }));
    }

    let other = json!({ "name": "Nvme0", "cntlid": 4711 });
    let refused = world.try_call("bdev_nvme_reset_controller", other).await.unwrap_err();
    assert_eq!(refused.code, -19);
    world.soft[0].remove();
    until("gone", async || world.state_of("Nvme0").await == "failed").await;
    let queue = blocking(move || {
        let mut queue = queue;
        assert!(read(&mut queue, 0).unwrap_err().same_code(Status::NAMESPACE_NOT_READY));
        queue
    })
    .await;
    let refused = world.try_call("bdev_nvme_reset_controller", reset.clone()).await.unwrap_err();
    assert_eq!(refused.code, -5, "{refused}");
    world.soft[0].insert();
    world.call("bdev_nvme_reset_controller", reset).await;
    blocking(move || {
        let mut queue = queue;
        assert_eq!(read(&mut queue, 0), Ok(vec![196; 512]));
        remote.shutdown().unwrap();
    })
    .await;
    world.call("bdev_nvme_detach_controller", json!({ "name": "Nvme0" })).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_health_is_asked_for_when_somebody_asks() {
    let world = World::new();
    world.attach("Nvme0", FIRST).await;
    let health = json!({ "name": "Nvme0" });
    let found = world.call("bdev_nvme_get_controller_health_info", health.clone()).await;
    for (name, value) in [
        ("model_number", json!("Software Controller")),
        ("traddr", json!(FIRST)),
        ("critical_warning", json!(0)),
        ("temperature_celsius", json!(310 - 273)),
    ] {
        assert_eq!(found[name], value, "{name}: {found}");
    }
    for name in ["available_spare_percentage", "power_on_hours", "media_errors", "data_units_read"]
    {
        assert!(found[name].is_u64(), "{name}: {found}");
    }
    world.soft[0].set_temperature(300);
    let found = world.call("bdev_nvme_get_controller_health_info", health.clone()).await;
    assert_eq!(found["temperature_celsius"], 300 - 273);
    world.soft[0].remove();
    until("gone", async || world.state_of("Nvme0").await == "failed").await;
    let refused = world.try_call("bdev_nvme_get_controller_health_info", health).await;
    assert_eq!(refused.unwrap_err().code, -32603);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_commands_of_anybodys_making_are_carried_out_and_answered() {
    let world = World::new();
    world.attach("Nvme0", FIRST).await;
    let send = |sqe: Sqe, more: Value| {
        let mut params = json!({
            "name": "Nvme0", "cmd_type": "admin", "data_direction": "c2h",
            "cmdbuf": BASE64_URL_SAFE.encode(sqe.as_bytes()),
        });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.try_call("bdev_nvme_send_cmd", params)
    };
    let decode = |value: &Value| BASE64_URL_SAFE.decode(value.as_str().unwrap()).unwrap();
    let identify = Command::Identify(Identify::new(Cns::Controller)).to_sqe(0);
    let answer = send(identify, json!({ "data_len": 4096 })).await.unwrap();
    let data = decode(&answer["data"]);
    assert_eq!((data.len(), &data[4..6]), (4096, &b"S1"[..]));
    assert_eq!(decode(&answer["cpl"]).len(), 16);
    // A status is an answer, too.
    let answer = send(Sqe::new(0xC0, 0), json!({})).await.unwrap();
    let cpl = decode(&answer["cpl"]);
    let status = u16::from_le_bytes([cpl[14], cpl[15]]) >> 1;
    assert_eq!(status & 0x7FF, 0x001, "Invalid Command Opcode");
    assert_eq!(answer["data"], Value::Null);
    let taken_away = send(Sqe::new(0x00, 0), json!({})).await.unwrap_err();
    assert_eq!(taken_away.code, -1, "Delete I/O Submission Queue");
    for (more, text) in [
        (json!({ "cmd_type": "io" }), "cmd_type"),
        (json!({ "metadata": "AAAA" }), "metadata"),
        (json!({ "data": "AAAA", "data_len": 4 }), "data_len"),
        (json!({ "data_len": 1 << 30 }), "data_len"),
        (json!({ "data_len": 8 << 20 }), "data_len"),
        (json!({ "cmdbuf": "AAAA" }), "cmdbuf"),
        (json!({ "cmdbuf": "&" }), "cmdbuf"),
        (json!({ "name": "Nvme7" }), "Nvme7"),
    ] {
        let refused = send(identify, more.clone()).await.unwrap_err();
        assert_eq!(refused.code, -32602, "{more}: {refused}");
        assert!(refused.message.contains(text), "{more}: {refused}");
    }
    world.soft[0].forgive();
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_firmware_is_applied_and_runs_afterwards() {
    let world = World::new();
    world.attach("Nvme0", FIRST).await;
    let folder = tempfile::tempdir().unwrap();
    let apply = |image: &[u8], bdev: &str| {
        let path = folder.path().join("image");
        std::fs::write(&path, image).unwrap();
        let params = json!({ "filename": path, "bdev_name": bdev });
        world.try_call("bdev_nvme_apply_firmware", params)
    };
    let mut image = vec![0; 3 * 4096 + 512];
    image[..8].copy_from_slice(b"2.5     ");
    let said = apply(&image, "Nvme0n1").await.unwrap();
    assert!(said.as_str().unwrap().starts_with("firmware commit succeeded."), "{said}");
    let bdev = world.call("bdev_get_bdevs", json!({ "name": "Nvme0n1" })).await;
    let firmware = &bdev[0]["driver_specific"]["nvme"][0]["ctrlr_data"]["firmware_revision"];
    assert_ne!(firmware, "1.0", "{bdev}");
    for (image, bdev, text) in [
        (&image[..6], "Nvme0n1", "Firmware image size is not multiple of 4."),
        (&[][..], "Nvme0n1", "Read firmware image failed!"),
        (&image[..], "Nvme0n9", "bdev Nvme0n9 could not be opened"),
    ] {
        let refused = apply(image, bdev).await.unwrap_err();
        assert_eq!(refused.code, -32603, "{refused}");
        assert!(refused.message.contains(text), "{refused}");
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_there_at_the_start_is_attached_when_it_comes() {
    let world = World::new();
    world.soft[0].remove();
    let document = json!({ "subsystems": [{ "subsystem": "bdev", "config": [{
        "method": "bdev_nvme_attach_controller",
        "params": { "name": "Nvme0", "trtype": "PCIe", "traddr": FIRST },
    }] }] });
    let objects = methods::objects(&document.to_string()).unwrap();
    world.begin(State::from(objects)).await;
    assert_eq!(world.state_of("Nvme0").await, "failed");
    let listed = world.call("bdev_nvme_get_controllers", Value::Null).await;
    assert!(listed[0]["ctrlrs"][0]["tidegate_waiting"].is_string(), "{listed}");
    let trying = tokio::spawn(waiting::try_again_and_again(Arc::clone(&world.plane)));
    world.soft[0].insert();
    until("it is there", async || world.state_of("Nvme0").await == "enabled").await;
    let bdevs = world.call("bdev_get_bdevs", Value::Null).await;
    assert_eq!(bdevs[0]["name"], "Nvme0n1");
    trying.abort();
    let _ = trying.await;
    world.end().await;
}
