//! Devices that are slow or fail on purpose: what hosts see of them, and that they are configuration like any other.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use host::{Controller, Queue, Transfer};
use nvme::Status;
use nvme::io::{self, Command};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::client::{Client, start};
use crate::support::daemon::{NQN, free_port, loopback, run, write_config};
use crate::support::{PATIENCE, call, connect, folder, options, until};

/// Exports the device as a namespace of `NQN`.
fn export(client: &mut Client, port: u16, device: &str) {
    client.call("nvmf_create_transport", &json!({ "trtype": "TCP" }));
    client.call("nvmf_create_subsystem", &json!({ "nqn": NQN, "allow_any_host": true }));
    let namespace = json!({ "nqn": NQN, "namespace": { "bdev_name": device } });
    assert_eq!(client.call("nvmf_subsystem_add_ns", &namespace), 1);
    let port = port.to_string();
    let address =
        json!({ "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port });
    let listener = json!({ "nqn": NQN, "listen_address": address });
    client.call("nvmf_subsystem_add_listener", &listener);
}

fn create(client: &mut Client, kind: &str, name: &str) {
    let params = json!({ "name": name, "num_blocks": 2048, "block_size": 512 });
    client.call(&format!("bdev_{kind}_create"), &params);
}

fn delay(name: &str, base: &str, micros: u64) -> Value {
    json!({
        "name": name, "base_bdev_name": base, "avg_read_latency": micros, "p99_read_latency": micros,
        "avg_write_latency": 0, "p99_write_latency": 0,
    })
}

/// A host with one queue.
struct Host {
    _controller: Controller,
    queue: Queue,
}

impl Host {
    fn new(port: u16) -> Host {
        let (controller, mut queues) = connect(options(loopback(port), NQN, "host"), 1, 16, 4096);
        Host { _controller: controller, queue: queues.pop().unwrap() }
    }

    fn write(&mut self, data: &[u8]) -> Status {
        let length = u32::try_from(data.len()).unwrap();
        let write = Command::Write(io::Transfer::new(0, length / 512)).to_sqe(1);
        let ended = call(&mut self.queue, write, Transfer::Write(length), data);
        self.queue.release(ended.slot);
        ended.cqe.status()
    }

    fn read(&mut self, length: u32) -> Result<Vec<u8>, Status> {
        let read = Command::Read(io::Transfer::new(0, length / 512)).to_sqe(1);
        let ended = call(&mut self.queue, read, Transfer::Read(length), &[]);
        let mut data = vec![0; length as usize];
        self.queue.copy_to(ended.slot, 0, &mut data);
        self.queue.release(ended.slot);
        if ended.cqe.status().is_success() { Ok(data) } else { Err(ended.cqe.status()) }
    }

    fn begin_read(&mut self) {
        let slot = self.queue.reserve().unwrap();
        let read = Command::Read(io::Transfer::new(0, 8)).to_sqe(1);
        self.queue.submit(slot, read, Transfer::Read(4096)).unwrap();
        self.queue.flush().unwrap();
    }

    /// How the command that was begun has ended, if it has.
    fn ended(&mut self) -> Option<Status> {
        self.queue.receive().unwrap();
        let ended = self.queue.next_completion()?;
        self.queue.release(ended.slot);
        Some(ended.cqe.status())
    }
}

fn inject(client: &mut Client, io_type: &str, error_type: &str, more: &Value) {
    let mut params = json!({ "name": "EE_ram", "io_type": io_type, "error_type": error_type });
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    assert_eq!(client.call("bdev_error_inject_error", &params), true);
}

#[test]
fn hosts_see_the_errors_that_are_injected_and_no_others() {
    let folder = folder();
    let port = free_port();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    create(&mut client, "malloc", "ram");
    assert_eq!(client.call("bdev_error_create", &json!({ "base_name": "ram" })), true);
    export(&mut client, port, "EE_ram");
    let mut host = Host::new(port);
    let data: Vec<u8> = (0..4096_u32).map(|at| (at % 251) as u8).collect();
    assert!(host.write(&data).is_success());

    // As often as it is asked for.
    inject(&mut client, "write", "failure", &json!({ "num": 2 }));
    let internal = [Status::INTERNAL_ERROR; 2];
    assert_eq!([host.write(&data), host.write(&data)], internal);
    assert!(host.write(&data).is_success());
    inject(&mut client, "read", "nvme_failure", &json!({ "nvme_sct": 2, "nvme_sc": 0x81 }));
    assert_eq!(host.read(4096), Err(Status::UNRECOVERED_READ_ERROR));
    assert_eq!(host.read(4096).as_ref(), Ok(&data));
    // Late, but no error.
    inject(&mut client, "all", "nomem", &json!({ "num": 3 }));
    assert_eq!(host.read(4096).as_ref(), Ok(&data));
    inject(&mut client, "clear", "failure", &json!({}));

    // Exactly one byte: on the way to the host, and on the medium.
    let corrupt = json!({ "corrupt_offset": 700, "corrupt_value": 5 });
    let mut wrong = data.clone();
    wrong[700] ^= 5;
    inject(&mut client, "read", "corrupt_data", &corrupt);
    assert_eq!(host.read(4096).as_ref(), Ok(&wrong));
    assert_eq!(host.read(4096).as_ref(), Ok(&data));
    inject(&mut client, "write", "corrupt_data", &corrupt);
    assert!(host.write(&data).is_success());
    assert_eq!(host.read(4096).as_ref(), Ok(&wrong));

    // Counted as the layer's own.
    let iostat = client.call("bdev_get_iostat", &json!({ "name": "EE_ram" }));
    assert_eq!(iostat["bdevs"][0]["io_error"]["failed"], 3);
    assert_eq!(iostat["bdevs"][0]["num_read_ops"], 5);
    let iostat = client.call("bdev_get_iostat", &json!({ "name": "ram" }));
    assert_eq!(iostat["bdevs"][0]["num_read_ops"], 0);
}

#[test]
fn pending_commands_wait_for_a_word_or_for_the_end_of_the_device() {
    let folder = folder();
    let port = free_port();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    create(&mut client, "malloc", "ram");
    client.call("bdev_error_create", &json!({ "base_name": "ram" }));
    export(&mut client, port, "EE_ram");
    let mut host = Host::new(port);
    inject(&mut client, "read", "pending", &json!({ "num": 9 }));
    host.begin_read();
    // What does not read goes on; the other is behind nobody.
    assert!(host.write(&[7; 4096]).is_success());
    assert_eq!(host.ended(), None);
    let name = json!({ "name": "EE_ram" });
    assert_eq!(client.call("bdev_error_resume_pending", &name), true);
    assert!(until("it goes on", || host.ended()).is_success());
    assert_eq!(host.read(4096), Ok(vec![7; 4096]), "nothing is armed any more");

    inject(&mut client, "read", "pending", &json!({}));
    host.begin_read();
    assert!(host.write(&[8; 4096]).is_success());
    assert_eq!(client.call("bdev_error_delete", &name), true);
    let status = until("it ends with its device", || host.ended());
    assert_eq!(status, Status::NAMESPACE_NOT_READY);
    // Nothing holds what is below.
    assert_eq!(client.call("bdev_malloc_delete", &json!({ "name": "ram" })), true);
}

#[test]
fn a_slow_device_is_as_slow_as_it_was_told_last() {
    const SLOW: Duration = Duration::from_millis(60);
    let folder = folder();
    let port = free_port();
    let daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    create(&mut client, "malloc", "ram");
    assert_eq!(client.call("bdev_delay_create", &delay("slow", "ram", 60_000)), "slow");
    export(&mut client, port, "slow");
    let mut host = Host::new(port);
    let mut timed = || {
        let began = Instant::now();
        assert_eq!(host.read(4096).map(|data| data.len()), Ok(4096));
        began.elapsed()
    };
    assert!(timed() >= SLOW);
    // Its own time wakes the reactor, and not the shard's clock, which ticks four times a second.
    let quickest = (0..8).map(|_| timed()).min().unwrap();
    assert!((SLOW..Duration::from_millis(200)).contains(&quickest), "{quickest:?}");
    let mut update = |which: &str, micros: u64| {
        let update =
            json!({ "delay_bdev_name": "slow", "latency_type": which, "latency_us": micros });
        assert_eq!(client.call("bdev_delay_update_latency", &update), true);
    };
    update("avg_read", 0);
    update("p99_read", 0);
    let quickest = (0..50).map(|_| timed()).min().unwrap();
    assert!(quickest < SLOW, "{quickest:?}");
    update("avg_read", 60_000);
    assert!((0..5).map(|_| timed()).max().unwrap() >= SLOW);
    update("avg_read", 70_000);
    daemon.kill();
    // It is configuration, and kept.
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    let bdev = client.call("bdev_get_bdevs", &json!({ "name": "slow" }))[0].clone();
    let mut expected = delay("slow", "ram", 0);
    expected["avg_read_latency"] = json!(70_000);
    expected["uuid"] = bdev["uuid"].clone();
    assert_eq!(bdev["driver_specific"], json!({ "delay": expected }));
}

/// Nobody is there any more to resume what pends, and an hour is longer than an orderly end may take.
#[test]
fn an_orderly_end_does_not_wait_for_what_is_held_on_purpose() {
    let folder = folder();
    let port = free_port();
    let daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    create(&mut client, "malloc", "ram");
    client.call("bdev_error_create", &json!({ "base_name": "ram" }));
    client.call("bdev_delay_create", &delay("slow", "EE_ram", 3_600_000_000));
    export(&mut client, port, "slow");
    let mut host = Host::new(port);
    inject(&mut client, "read", "pending", &json!({}));
    // One pends, and one is back from the medium and slow.
    host.begin_read();
    host.begin_read();
    // On the same queue: they are in the device when it is answered.
    assert!(host.write(&[7; 4096]).is_success());
    daemon.signal(Signal::TERM);
    let (status, errors, _) = daemon.wait();
    assert!(status.success(), "{errors}");
}

/// A UUID would find its device when a document is loaded, and not before: the same calls would make two things.
#[test]
fn a_base_that_is_not_there_is_named_by_its_name() {
    const UUID: &str = "11111111-2222-4333-8444-555555555555";
    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    let missing = (-19, format!("No such device: {UUID}"));
    assert_eq!(client.refused("bdev_delay_create", &delay("slow", UUID, 0)), missing);
    assert_eq!(client.refused("bdev_error_create", &json!({ "base_name": UUID })), missing);
    let base = json!({ "name": "null", "num_blocks": 8, "block_size": 512, "uuid": UUID });
    client.call("bdev_null_create", &base);
    client.call("bdev_delay_create", &delay("slow", UUID, 0));
    let slow = client.call("bdev_get_bdevs", &json!({ "name": "slow" }));
    assert_eq!(slow[0]["driver_specific"]["delay"]["base_bdev_name"], "null");
    assert_eq!(slow[0]["num_blocks"], 8);
}

fn bdevs(client: &mut Client) -> Value {
    client.call("bdev_get_bdevs", &Value::Null)
}

/// Names that sort against the order in which things stand on each other.
fn tower(client: &mut Client) {
    create(client, "null", "z");
    client.call("bdev_error_create", &json!({ "base_name": "z" }));
    client.call("bdev_delay_create", &delay("a", "EE_z", 10));
}

#[test]
fn layers_survive_a_kill_and_move_as_documents() {
    let (here, there) = (folder(), folder());
    let daemon = start(here.path(), &[]);
    let mut client = Client::connect(here.path());
    tower(&mut client);
    create(&mut client, "malloc", "ground");
    client.call(
        "tidegate_bdev_create",
        &json!({ "name": "protected", "uuid": null, "kind": { "ram": { "size": 4096, "block_size": 512, "read_only": true } } }),
    );
    // SPDK has no words for what this stands on, so none for this.
    client.call("bdev_delay_create", &delay("b", "protected", 0));
    let found = bdevs(&mut client);
    let claims: Vec<_> = found
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["name"].clone(), it["claimed"].clone()))
        .collect();
    let expected = [
        ("EE_z", true),
        ("a", false),
        ("b", false),
        ("ground", false),
        ("protected", true),
        ("z", true),
    ];
    assert_eq!(claims, expected.map(|(name, claimed)| (json!(name), json!(claimed))));
    daemon.kill();
    let _daemon = start(here.path(), &[]);
    let mut client = Client::connect(here.path());
    assert_eq!(bdevs(&mut client), found);

    let document = client.call("save_config", &Value::Null);
    let methods = |part: usize| -> Vec<&str> {
        let calls = document["subsystems"][part]["config"].as_array().unwrap();
        calls.iter().map(|call| call["method"].as_str().unwrap()).collect()
    };
    assert_eq!(methods(0)[2..], ["bdev_error_create", "bdev_delay_create"]);
    assert_eq!(methods(1), ["tidegate_bdev_create"; 2]);
    let _other = start(there.path(), &[]);
    let mut other = Client::connect(there.path());
    assert_eq!(other.call("load_config", &document), true);
    assert_eq!(bdevs(&mut other), found);
    assert_eq!(other.call("save_config", &Value::Null), document);

    // SPDK writes what stands on others before the others.
    let mut reversed = document.clone();
    reversed["subsystems"][0]["config"].as_array_mut().unwrap().reverse();
    let last = folder();
    let _last = start(last.path(), &[]);
    let mut client = Client::connect(last.path());
    assert_eq!(client.call("load_config", &reversed), true);
    assert_eq!(bdevs(&mut client), found);
}

#[test]
fn what_is_stood_on_is_claimed_and_stays() {
    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    tower(&mut client);
    client.call("nvmf_create_subsystem", &json!({ "nqn": NQN }));
    let namespace = |device: &str| json!({ "nqn": NQN, "namespace": { "bdev_name": device } });
    create(&mut client, "null", "used");
    client.call("nvmf_subsystem_add_ns", &namespace("used"));
    let before = bdevs(&mut client);
    let rare = json!({
        "name": "rare", "base_bdev_name": "x", "avg_read_latency": 2, "p99_read_latency": 1,
        "avg_write_latency": 0, "p99_write_latency": 0,
    });
    let error = |more: Value| {
        let mut params = json!({ "name": "EE_z", "io_type": "read", "error_type": "failure" });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        params
    };
    for (method, params, code, text) in [
        ("bdev_null_delete", json!({ "name": "z" }), -16, "EE_z stands on z"),
        ("bdev_error_delete", json!({ "name": "EE_z" }), -16, "a stands on EE_z"),
        ("bdev_error_delete", json!({ "name": "a" }), -19, "No such device"),
        ("bdev_delay_delete", json!({ "name": "EE_z" }), -19, "No such device"),
        ("nvmf_subsystem_add_ns", namespace("z"), -32602, "EE_z stands on z"),
        ("bdev_error_create", json!({ "base_name": "z" }), -17, "File exists"),
        ("bdev_error_create", json!({ "base_name": "used" }), -1, "Operation not permitted"),
        ("bdev_delay_create", delay("b", "z", 0), -1, "EE_z stands on z already"),
        ("bdev_delay_create", delay("a", "used", 0), -17, "File exists"),
        ("bdev_delay_create", delay("itself", "itself", 0), -22, "itself"),
        ("bdev_delay_create", rare, -22, "p99"),
        (
            "bdev_delay_update_latency",
            json!({ "delay_bdev_name": "EE_z", "latency_type": "avg_read", "latency_us": 1 }),
            -32602,
            "The requested bdev does not exist",
        ),
        (
            "bdev_delay_update_latency",
            json!({ "delay_bdev_name": "a", "latency_type": "worst", "latency_us": 1 }),
            -32602,
            "latency_type",
        ),
        ("bdev_error_inject_error", error(json!({ "name": "a" })), -19, "No such device"),
        ("bdev_error_inject_error", error(json!({ "io_type": "reset" })), -32602, "io_type"),
        (
            "bdev_error_inject_error",
            error(json!({ "error_type": "corrupt_data" })),
            -22,
            "corrupt_value",
        ),
        (
            "bdev_error_inject_error",
            error(json!({ "error_type": "nvme_failure" })),
            -22,
            "nvme_sct",
        ),
        ("bdev_error_inject_error", error(json!({ "nvme_sc": 3 })), -22, "nvme_sct"),
        (
            "bdev_error_inject_error",
            error(json!({ "error_type": "nvme_failure", "nvme_sct": 8 })),
            -22,
            "7 at most",
        ),
        ("bdev_error_resume_pending", json!({ "name": "a" }), -19, "No such device"),
    ] {
        let (found, said) = client.refused(method, &params);
        assert_eq!(found, code, "{method} {params}: {said}");
        assert!(said.contains(text), "{method} {params}: {said}");
        assert_eq!(bdevs(&mut client), before);
    }

    // A circle through what is not there yet.
    client.call("bdev_delay_create", &delay("c", "d", 0));
    client.call("bdev_delay_create", &delay("d", "e", 0));
    assert_eq!(client.refused("bdev_delay_create", &delay("e", "c", 0)).0, -22);
    for name in ["c", "d", "a"] {
        assert_eq!(client.call("bdev_delay_delete", &json!({ "name": name })), true);
    }
    assert_eq!(client.call("bdev_error_delete", &json!({ "name": "EE_z" })), true);
    assert_eq!(client.call("bdev_null_delete", &json!({ "name": "z" })), true);
}

#[test]
fn a_layer_waits_for_its_base_and_grows_with_it() {
    let folder = folder();
    let disk = folder.path().join("disk.img");
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    // Before what it stands on.
    client.call("bdev_error_create", &json!({ "base_name": "disk" }));
    let layer = |folder: &Path| {
        Client::connect(folder).call("bdev_get_bdevs", &json!({ "name": "EE_disk" }))[0].clone()
    };
    let waiting = layer(folder.path())["tidegate_waiting"].clone();
    assert!(waiting.as_str().unwrap().contains("disk"), "{waiting}");
    let arm = json!({ "name": "EE_disk", "io_type": "read", "error_type": "failure" });
    assert_eq!(client.refused("bdev_error_inject_error", &arm).0, -19);
    let file = json!({ "name": "disk", "filename": disk, "block_size": 512 });
    client.call("bdev_aio_create", &file);
    assert_eq!(layer(folder.path())["num_blocks"], 2048);
    fs::OpenOptions::new().write(true).open(&disk).unwrap().set_len(2 << 20).unwrap();
    client.call("bdev_aio_rescan", &json!({ "name": "disk" }));
    assert_eq!(layer(folder.path())["num_blocks"], 4096);
    create(&mut client, "null", "null");
    client.call("bdev_delay_create", &delay("slow", "null", 0));
    client.call("bdev_null_resize", &json!({ "name": "null", "new_size": 3 }));
    let slow = client.call("bdev_get_bdevs", &json!({ "name": "slow" }));
    assert_eq!(slow[0]["num_blocks"], 6144);
    let noted = client.call("notify_get_notifications", &json!({ "id": 0 }));
    let resized = noted.as_array().unwrap().iter().filter(|it| it["type"] == "bdev_resize");
    let resized: Vec<_> = resized.map(|it| it["ctx"].as_str().unwrap()).collect();
    // To come is to have a size.
    assert_eq!(resized, ["EE_disk", "disk", "EE_disk", "null", "slow"]);
    daemon.kill();

    let elsewhere = folder.path().join("elsewhere.img");
    fs::rename(&disk, &elsewhere).unwrap();
    let _daemon = start(folder.path(), &[]);
    assert!(layer(folder.path())["tidegate_waiting"].is_string());
    fs::rename(&elsewhere, &disk).unwrap();
    until("both come", || (layer(folder.path())["num_blocks"] == 4096).then_some(()));
}

#[test]
fn a_configuration_file_says_the_same() {
    let folder = folder();
    let port = free_port();
    let config = |more: &str| {
        format!(
            "[devices.z]\nkind = \"ram\"\nsize = \"1MiB\"\nblock_size = 512\n[devices.failing]\nkind = \"error\"\nbase = \"z\"\n{more}\n\
             [[subsystems]]\nnqn = \"{NQN}\"\nnamespaces = [{{ nsid = 1, device = \"a\" }}]\n\
             listeners = [{{ address = \"127.0.0.1\", port = {port} }}]\n"
        )
    };
    let slow = |base: &str, more: &str| {
        format!("[devices.a]\nkind = \"delay\"\nbase = \"{base}\"\n{more}")
    };
    for (more, key, text) in [
        (slow("none", ""), "devices.a.base", "not in [devices]"),
        (slow("z", ""), "devices.failing.base", "device a stands on z already"),
        (slow("a", ""), "devices.a.base", "stand on itself"),
        (slow("failing", "size = 4096"), "devices.a.size", "belongs to devices of kind"),
        (
            slow("failing", "read_latency = \"2ms\"\nread_latency_p99 = \"1ms\""),
            "devices.a.read_latency_p99",
            "less than the average",
        ),
        ("[devices.a]\nkind = \"delay\"".to_owned(), "devices.a.base", "is missing"),
        (
            "[devices.a]\nkind = \"null\"\nsize = 4096\nread_latency = \"1ms\"".to_owned(),
            "devices.a.read_latency",
            "belongs to devices of kind delay",
        ),
        (
            format!(
                "[devices.a]\nkind = \"null\"\nsize = 4096\n{}",
                slow("a", "").replace("devices.a", "devices.b")
            ),
            "subsystems[0].namespaces[0].device",
            "device b stands on it",
        ),
    ] {
        write_config(folder.path(), &config(&more));
        let output = run(
            folder.path(),
            &["serve", "--config", "tidegate.toml", "--state", "none", "--rpc-socket", "none"],
        );
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(key) && said.contains(text),
            "{more}: {said}"
        );
    }
    let more = slow(
        "failing",
        "read_latency = \"20ms\"\nwrite_latency = \"30us\"\nwrite_latency_p99 = \"1ms\"",
    );
    write_config(folder.path(), &config(&more));
    let _daemon = start(folder.path(), &["--config", "tidegate.toml"]);
    let mut client = Client::connect(folder.path());
    let about =
        client.call("bdev_get_bdevs", &json!({ "name": "a" }))[0]["driver_specific"]["delay"]
            .clone();
    let found = ["avg_read", "p99_read", "avg_write", "p99_write"]
        .map(|it| about[format!("{it}_latency")].clone());
    assert_eq!(found, [20_000, 20_000, 30, 1000].map(|micros| json!(micros)));
    let mut host = Host::new(port);
    let began = Instant::now();
    assert!(host.read(4096) == Ok(vec![0; 4096]));
    assert!(began.elapsed() >= Duration::from_millis(20) && began.elapsed() < PATIENCE);
}
