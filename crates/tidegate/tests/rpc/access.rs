//! What hosts may see and reach, told by the client while they are connected, and kept: states of paths, namespaces that
//! are hidden, referrals.

use std::net::SocketAddr;

use host::{Controller, Queue, Transfer};
use nvme::Status;
use nvme::event::Event;
use nvme::io;
use nvme::log::LogPage;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::client::{Client, start};
use crate::provisioning::provision;
use crate::support::daemon::{NQN, free_port, loopback, run_json, write_config};
use crate::support::{PATIENCE, call, connect, folder, identity, options};

fn address(port: u16) -> Value {
    json!({ "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string() })
}

fn ana_state(port: u16, state: &str, group: Option<u32>) -> Value {
    let mut params = json!({ "nqn": NQN, "listen_address": address(port), "ana_state": state });
    if let Some(group) = group {
        params["anagrpid"] = group.into();
    }
    params
}

/// A subsystem that reports ANA, with namespace 1 in group 1 and 2 in group 7, reached by two ports.
fn two_paths(client: &mut Client) -> [u16; 2] {
    let ports = [free_port(), free_port()];
    client.call("nvmf_create_transport", &json!({ "trtype": "TCP" }));
    let subsystem =
        json!({ "nqn": NQN, "allow_any_host": true, "ana_reporting": true, "max_namespaces": 8 });
    client.call("nvmf_create_subsystem", &subsystem);
    for (name, more) in [("one", json!({})), ("two", json!({ "anagrpid": 7 }))] {
        let device = json!({ "name": name, "num_blocks": 64, "block_size": 512 });
        client.call("bdev_malloc_create", &device);
        let mut namespace = json!({ "bdev_name": name });
        namespace.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        client.call("nvmf_subsystem_add_ns", &json!({ "nqn": NQN, "namespace": namespace }));
    }
    for port in ports {
        let listener = json!({ "nqn": NQN, "listen_address": address(port) });
        client.call("nvmf_subsystem_add_listener", &listener);
    }
    ports
}

/// A host of this name on this path, with one I/O queue.
fn host(address: SocketAddr, name: &str) -> (Controller, Queue) {
    let (controller, mut queues) = connect(options(address, NQN, name), 1, 32, 4096);
    (controller, queues.remove(0))
}

fn read(queue: &mut Queue, nsid: u32) -> Status {
    let sqe = io::Command::Read(io::Transfer::new(0, 1)).to_sqe(nsid);
    let completion = call(queue, sqe, Transfer::Read(512), &[]);
    queue.release(completion.slot);
    completion.cqe.status()
}

fn states(client: &mut Client, port: u16) -> Vec<String> {
    let listeners = client.call("nvmf_subsystem_get_listeners", &json!({ "nqn": NQN }));
    let all = listeners.as_array().unwrap();
    let found = all.iter().find(|it| it["address"] == address(port)).unwrap();
    let states = found["ana_states"].as_array().unwrap().iter().enumerate();
    states
        .map(|(at, it)| {
            assert_eq!(it["ana_group"], at + 1);
            it["ana_state"].as_str().unwrap().to_owned()
        })
        .collect()
}

#[test]
fn states_of_paths_hold_at_once_and_after_a_restart() {
    let folder = folder();
    let daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    let ports = two_paths(&mut client);
    assert_eq!(states(&mut client, ports[0]), ["optimized"; 8]);
    let (mut controller, mut first) = host(loopback(ports[0]), "host");
    let (_second, mut second) = host(loopback(ports[1]), "host");
    controller.set_feature(nvme::feature::Feature::AsynchronousEvents, 1 << 11).unwrap();
    controller.request_event().unwrap();

    let method = "nvmf_subsystem_listener_set_ana_state";
    assert_eq!(client.call(method, &ana_state(ports[0], "inaccessible", Some(7))), true);
    assert_eq!([read(&mut first, 1), read(&mut second, 2)], [Status::SUCCESS; 2]);
    assert_eq!(read(&mut first, 2), Status::ANA_INACCESSIBLE);
    assert_eq!(controller.next_event(PATIENCE).unwrap(), Some(Ok(Event::ANA_CHANGE)));
    // Without a group it is all of them, whatever was said of single ones.
    client.call(method, &ana_state(ports[1], "non_optimized", Some(2)));
    client.call(method, &ana_state(ports[1], "persistent_loss", None));
    assert_eq!(states(&mut client, ports[1]), ["persistent_loss"; 8]);
    assert_eq!(read(&mut second, 1), Status::ANA_PERSISTENT_LOSS);
    // A namespace changes its group.
    let group = json!({ "nqn": NQN, "nsid": 2, "anagrpid": 1, "transit_anagrpid": 3 });
    assert_eq!(client.call("nvmf_subsystem_set_ns_ana_group", &group), true);
    assert_eq!(read(&mut first, 2), Status::SUCCESS);
    let subsystems = client.call("nvmf_get_subsystems", &json!({ "nqn": NQN }));
    let groups: Vec<_> =
        (0..2).map(|at| subsystems[0]["namespaces"][at]["anagrpid"].clone()).collect();
    assert_eq!(groups, [1, 1]);

    let document = client.call("save_config", &Value::Null);
    let described = client.call("nvmf_subsystem_get_listeners", &json!({ "nqn": NQN }));
    daemon.signal(Signal::KILL);
    drop(daemon.wait());
    let daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    assert_eq!(client.call("nvmf_subsystem_get_listeners", &json!({ "nqn": NQN })), described);
    assert_eq!(client.call("save_config", &Value::Null), document);
    assert_eq!(read(&mut host(loopback(ports[1]), "host").1, 1), Status::ANA_PERSISTENT_LOSS);
    drop(daemon);

    let other = crate::support::folder();
    let _daemon = start(other.path(), &[]);
    let mut client = Client::connect(other.path());
    assert_eq!(client.call("load_config", &document), true);
    assert_eq!(client.call("nvmf_subsystem_get_listeners", &json!({ "nqn": NQN })), described);
}

#[test]
fn what_cannot_be_set_is_refused_in_the_words_of_spdk() {
    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    let [port, _] = two_paths(&mut client);
    let silent = "nqn.2026-11.io.tidegate:silent";
    client.call("nvmf_create_subsystem", &json!({ "nqn": silent }));
    let set = "nvmf_subsystem_listener_set_ana_state";
    let mut not_reported = ana_state(port, "inaccessible", None);
    not_reported["nqn"] = silent.into();
    let mut nobody = not_reported.clone();
    nobody["nqn"] = "nqn.2026-11.io.tidegate:none".into();
    let masked = |nsid: u32| json!({ "nqn": NQN, "nsid": nsid, "host": "nqn.2026-11.a:b" });
    let group = |nsid: u32, group: u32| json!({ "nqn": NQN, "nsid": nsid, "anagrpid": group });
    let elsewhere = json!({ "address": address(8009) });
    let mut portless = elsewhere.clone();
    portless["address"].as_object_mut().unwrap().remove("trsvcid");
    let new = json!({ "nqn": NQN, "namespace": { "bdev_name": "three", "anagrpid": 9 } });
    client
        .call("bdev_null_create", &json!({ "name": "three", "num_blocks": 8, "block_size": 512 }));
    for (method, params, code, text) in [
        (set, not_reported, -32603, "error setting ANA state: -22"),
        (set, ana_state(free_port(), "optimized", None), -32603, "error setting ANA state: -22"),
        (set, ana_state(port, "optimized", Some(9)), -32603, "error setting ANA state: -22"),
        (set, nobody, -32602, "Unable to find subsystem with NQN"),
        (set, ana_state(port, "splendid", None), -32602, "splendid"),
        ("nvmf_subsystem_set_ns_ana_group", group(1, 0), -32602, "anagrpid"),
        ("nvmf_subsystem_set_ns_ana_group", group(1, 9), -32602, "ANA group 9"),
        ("nvmf_subsystem_set_ns_ana_group", group(5, 1), -32602, "namespace 5"),
        ("nvmf_subsystem_add_ns", new, -32602, "ANA group 9"),
        ("nvmf_ns_add_host", masked(1), -32602, "no_auto_visible"),
        ("nvmf_ns_remove_host", masked(1), -32602, "no_auto_visible"),
        ("nvmf_ns_add_host", masked(5), -32602, "namespace 5"),
        ("nvmf_discovery_add_referral", portless, -32603, "Service ID is required."),
        ("nvmf_discovery_remove_referral", elsewhere, -32603, "Unable to remove a referral."),
    ] {
        let (found, said) = client.refused(method, &params);
        assert_eq!(found, code, "{method} {params}: {said}");
        assert!(said.contains(text), "{method} {params}: {said}");
    }
}

#[test]
fn a_listener_needs_its_transport_first() {
    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    client.call("nvmf_create_subsystem", &json!({ "nqn": NQN }));
    let listener = json!({ "nqn": NQN, "listen_address": address(free_port()) });
    let (code, said) = client.refused("nvmf_subsystem_add_listener", &listener);
    assert!(code == -32602 && said.starts_with("Invalid parameters"), "{said}");
    assert!(said.contains("Unable to find TCP transport"), "{said}");
    client.call("nvmf_create_transport", &json!({ "trtype": "TCP" }));
    assert_eq!(client.call("nvmf_subsystem_add_listener", &listener), true);
}

#[test]
fn a_namespace_is_seen_by_those_that_are_named() {
    let folder = folder();
    let port = free_port();
    let daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    provision(&mut client, port);
    let device = json!({ "name": "own", "num_blocks": 64, "block_size": 512 });
    client.call("bdev_malloc_create", &device);
    let namespace = json!({ "bdev_name": "own", "no_auto_visible": true });
    let added = json!({ "nqn": NQN, "namespace": namespace });
    assert_eq!(client.call("nvmf_subsystem_add_ns", &added), 2);
    let (mut friend, mut queue) = host(loopback(port), "friend");
    let (mut stranger, mut other) = host(loopback(port), "stranger");
    let invalid = Status::INVALID_NAMESPACE.with_dnr();
    assert_eq!([read(&mut queue, 2), read(&mut other, 2)], [invalid; 2]);
    for controller in [&mut friend, &mut stranger] {
        controller.set_feature(nvme::feature::Feature::AsynchronousEvents, 1 << 8).unwrap();
        controller.request_event().unwrap();
    }
    let name = identity("friend").nqn.to_string();
    let one = json!({ "nqn": NQN, "nsid": 2, "host": name });
    assert_eq!(client.call("nvmf_ns_add_host", &one), true);
    assert_eq!(client.call("nvmf_ns_add_host", &one), true, "again, as in SPDK");
    assert_eq!(friend.next_event(PATIENCE).unwrap(), Some(Ok(Event::NAMESPACE_CHANGED)));
    friend.log_page(LogPage::ChangedNamespaces, 0, 0, &mut [0; 4096]).unwrap();
    assert_eq!(
        (friend.namespaces().unwrap(), stranger.namespaces().unwrap()),
        (vec![1, 2], vec![1])
    );
    assert_eq!([read(&mut queue, 2), read(&mut other, 2)], [Status::SUCCESS, invalid]);
    let described = client.call("nvmf_get_subsystems", &json!({ "nqn": NQN }));
    let namespace = &described[0]["namespaces"][1];
    assert_eq!(namespace["no_auto_visible"], true);
    assert_eq!(namespace["hosts"], json!([{ "nqn": name }]));
    assert!(described[0]["namespaces"][0].get("hosts").is_none());

    // Kept, and taken away again from one that is connected.
    daemon.kill();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    assert_eq!(client.call("nvmf_get_subsystems", &json!({ "nqn": NQN })), described);
    let (mut friend, mut queue) = host(loopback(port), "friend");
    assert_eq!(read(&mut queue, 2), Status::SUCCESS);
    friend.request_event().unwrap();
    assert_eq!(client.call("nvmf_ns_remove_host", &one), true);
    assert_eq!(client.call("nvmf_ns_remove_host", &one), true);
    assert_eq!(read(&mut queue, 2), invalid);
    assert_eq!(friend.next_event(PATIENCE).unwrap(), Some(Ok(Event::NAMESPACE_CHANGED)));
    assert_eq!(friend.namespaces().unwrap(), [1]);
}

#[test]
fn referrals_are_in_the_discovery_log() {
    let folder = folder();
    let port = free_port();
    let daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    provision(&mut client, port);
    let discover = || {
        let log = run_json(folder.path(), &["discover", "-s", &port.to_string()]);
        let records = log["records"].as_array().unwrap().clone();
        (log["genctr"].as_u64().unwrap(), records)
    };
    let (before, own) = discover();
    let other =
        json!({ "trtype": "tcp", "adrfam": "ipv4", "traddr": "192.0.2.9", "trsvcid": "8009" });
    let referral = json!({ "address": other });
    assert_eq!(client.call("nvmf_discovery_add_referral", &referral), true);
    assert_eq!(client.call("nvmf_discovery_add_referral", &referral), true, "again, as in SPDK");
    let subsystem =
        json!({ "address": other, "subnqn": "nqn.2026-11.a:b", "secure_channel": true });
    client.call("nvmf_discovery_add_referral", &subsystem);
    let (after, records) = discover();
    assert_eq!((after, records.len()), (before + 2, own.len() + 2));
    let subtypes: Vec<_> = records[own.len()..]
        .iter()
        .map(|it| (&it["subtype"], &it["subnqn"], &it["treq"]))
        .collect();
    assert_eq!(
        json!(subtypes),
        json!([
            ["discovery subsystem referral", nvme::nqn::DISCOVERY_NQN, "not specified"],
            ["nvme subsystem", "nqn.2026-11.a:b", "required"],
        ])
    );
    let canonical =
        json!({ "trtype": "TCP", "adrfam": "IPv4", "traddr": "192.0.2.9", "trsvcid": "8009" });
    let listed = client.call("nvmf_discovery_get_referrals", &Value::Null);
    let described = |subnqn: &str, secure_channel: bool| json!({ "address": canonical, "secure_channel": secure_channel, "subnqn": subnqn });
    let expected =
        json!([described(nvme::nqn::DISCOVERY_NQN, false), described("nqn.2026-11.a:b", true)]);
    assert_eq!(listed, expected);
    daemon.kill();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    assert_eq!(client.call("nvmf_discovery_get_referrals", &Value::Null), expected);
    assert_eq!(discover().1, records);
    assert_eq!(client.call("nvmf_discovery_remove_referral", &referral), true);
    let gone = json!({ "address": other, "subnqn": "nqn.2026-11.a:b" });
    assert_eq!(client.call("nvmf_discovery_remove_referral", &gone), true);
    assert_eq!(discover().1, own);
}

#[test]
fn a_configuration_file_says_all_of_it() {
    let folder = folder();
    let ports = [free_port(), free_port()];
    let friend = identity("friend").nqn.to_string();
    let config = format!(
        r#"
[devices.disk]
kind = "ram"
size = "1MiB"
block_size = 512

[[subsystems]]
nqn = "{NQN}"
ana_reporting = true

[[subsystems.namespaces]]
nsid = 1
device = "disk"
ana_group = 7
hosts = ["{friend}"]

[[subsystems.listeners]]
address = "127.0.0.1"
port = {}

[[subsystems.listeners]]
address = "127.0.0.1"
port = {}
ana_state = "inaccessible"
ana_groups = {{ 3 = "non_optimized" }}

[[referrals]]
address = "192.0.2.9"
"#,
        ports[0], ports[1]
    );
    write_config(folder.path(), &config);
    let _daemon = start(folder.path(), &["--config", "tidegate.toml"]);
    let mut client = Client::connect(folder.path());
    let read_by = |port, name| read(&mut host(loopback(port), name).1, 1);
    assert_eq!(read_by(ports[0], "friend"), Status::SUCCESS);
    assert_eq!(read_by(ports[1], "friend"), Status::ANA_INACCESSIBLE);
    assert_eq!(read_by(ports[0], "stranger"), Status::INVALID_NAMESPACE.with_dnr());
    let states = states(&mut client, ports[1]);
    assert_eq!(states[..4], ["inaccessible", "inaccessible", "non_optimized", "inaccessible"]);
    let referrals = client.call("nvmf_discovery_get_referrals", &Value::Null);
    assert_eq!(referrals[0]["address"]["trsvcid"], "8009");
}
