use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use nvme::Nqn;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::objects::{Address, Latencies, Namespace, Referral, Trtype};

fn nqn(name: &str) -> Nqn {
    format!("nqn.2026-11.io.tidegate:{name}").parse().unwrap()
}

fn uuids() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn kinds() -> impl Strategy<Value = DeviceKind> {
    let block_sizes = || prop_oneof![Just(512_u32), Just(4096)];
    let sizes =
        || prop_oneof![any::<u32>().prop_map(u64::from), (1..1_u64 << 40).prop_map(|it| it << 12)];
    let directs =
        prop_oneof![2 => Just(Direct::Auto), 1 => Just(Direct::Always), 1 => Just(Direct::Never)];
    let methods =
        prop_oneof![Just(FileMethod::Aio), Just(FileMethod::Uring), Just(FileMethod::Xnvme)];
    let files = (
        "[a-z/ ]{1,9}",
        option::of(block_sizes()),
        option::of(sizes()),
        directs,
        any::<bool>(),
        methods,
    );
    prop_oneof![
        (sizes(), block_sizes())
            .prop_map(|(size, block_size)| DeviceKind::Null { size, block_size }),
        (sizes(), block_sizes(), any::<bool>()).prop_map(|(size, block_size, read_only)| {
            DeviceKind::Ram { size, block_size, read_only }
        }),
        files.prop_map(|(path, block_size, create_size, direct, read_only, made_as)| {
            let path = PathBuf::from(path);
            DeviceKind::File { path, block_size, create_size, direct, read_only, made_as }
        }),
    ]
}

fn limits() -> impl Strategy<Value = RateLimits> {
    let rates = || prop_oneof![3 => Just(0), 1 => 1..=u64::MAX];
    (rates(), rates(), rates(), rates(), rates(), rates()).prop_map(
        |(rw, r, w, all, read, written)| RateLimits {
            rw_ios_per_sec: rw,
            r_ios_per_sec: r,
            w_ios_per_sec: w,
            rw_mbytes_per_sec: all,
            r_mbytes_per_sec: read,
            w_mbytes_per_sec: written,
        },
    )
}

/// What stands on one of the devices that nothing stands on yet.
#[derive(Debug, Clone)]
struct Layer {
    on: prop::sample::Index,
    /// None: it fails, under SPDK's name for that or another.
    latencies: Option<Latencies>,
    name: Option<String>,
    uuid: Option<Uuid>,
    limits: RateLimits,
}

fn layers() -> impl Strategy<Value = Vec<Layer>> {
    let micros = || 0..4_u64;
    let latencies = (micros(), micros(), micros(), micros()).prop_map(
        |(avg_read, p99_read, avg_write, p99_write)| Latencies {
            avg_read,
            p99_read,
            avg_write,
            p99_write,
        },
    );
    let layer = (any::<prop::sample::Index>(), option::of(latencies), option::of("[A-Z]{1,3}"));
    let layer = (layer, option::weighted(0.7, uuids()), limits());
    let made = layer.prop_map(|((on, latencies, name), uuid, limits)| Layer {
        on,
        latencies,
        name,
        uuid,
        limits,
    });
    vec(made, 0..6)
}

/// Devices, and the names of those that namespaces may be over.
fn devices() -> impl Strategy<Value = (BTreeMap<String, Device>, Vec<String>)> {
    let device = (option::weighted(0.7, uuids()), kinds(), limits());
    let grounds = btree_map("[A-Za-z0-9 /:\"]{1,6}", device, 0..6);
    (grounds, layers()).prop_map(|(grounds, layers)| {
        let mut seen = BTreeSet::new();
        let mut devices = BTreeMap::new();
        for (name, (uuid, kind, limits)) in grounds {
            let uuid = uuid.filter(|uuid| seen.insert(*uuid));
            devices.insert(name.clone(), Device { name, uuid, kind, limits });
        }
        let mut free: Vec<String> = devices.keys().cloned().collect();
        for Layer { on, latencies, name, uuid, limits } in layers {
            let Some(at) = (!free.is_empty()).then(|| on.index(free.len())) else { continue };
            let base = free[at].clone();
            let name = name.unwrap_or_else(|| faults::error_name(&base));
            if devices.contains_key(&name) {
                continue;
            }
            free[at].clone_from(&name);
            let kind = match latencies {
                Some(latencies) => DeviceKind::Delay { base, latencies },
                None => DeviceKind::Error { base },
            };
            let uuid = uuid.filter(|uuid| seen.insert(*uuid));
            devices.insert(name.clone(), Device { name, uuid, kind, limits });
        }
        (devices, free)
    })
}

fn trtypes() -> impl Strategy<Value = Trtype> {
    prop_oneof![Just(Trtype::Tcp), Just(Trtype::Rdma)]
}

fn transports() -> impl Strategy<Value = BTreeMap<Trtype, Transport>> {
    // Those that the method takes.
    let (in_capsule, io) =
        ((0_u32..4096).prop_map(|size| size * 16), (12_u32..31).prop_map(|log| 1 << log));
    let sizes = (option::of(in_capsule), option::of(io));
    let rdma = (option::of(any::<u32>()), option::of(any::<u32>()));
    let transport = (option::of(32..u16::MAX), option::of(1..u16::MAX), sizes, rdma);
    btree_map(trtypes(), transport, 0..=2).prop_map(|all| {
        let all = all.into_iter();
        all.map(|(trtype, (depth, queues, (in_capsule, io), (receives, completions)))| {
            let own = |asked: Option<u32>| asked.filter(|_| trtype == Trtype::Rdma);
            let transport = Transport {
                trtype,
                max_queue_depth: depth,
                max_io_qpairs_per_ctrlr: queues,
                in_capsule_data_size: in_capsule,
                max_io_size: io,
                max_srq_depth: own(receives),
                num_cqe: own(completions),
            };
            (trtype, transport)
        })
        .collect()
    })
}

fn addresses() -> impl Strategy<Value = Address> {
    (trtypes(), any::<IpAddr>(), 1..u16::MAX).prop_map(|(trtype, traddr, trsvcid)| Address {
        trtype,
        traddr,
        trsvcid,
    })
}

fn ana_state() -> impl Strategy<Value = AnaState> {
    (0..AnaState::ALL.len()).prop_map(|at| AnaState::ALL[at].0)
}

/// States of groups that there can be, none of them the same as every other's.
fn ana_states() -> impl Strategy<Value = AnaStates> {
    (ana_state(), btree_map(1..=8_u32, ana_state(), 0..3)).prop_map(|(every, groups)| {
        let mut states = AnaStates { every, groups: BTreeMap::new() };
        for (group, state) in groups {
            states.set(Some(group), state);
        }
        states
    })
}

fn referrals() -> impl Strategy<Value = BTreeMap<(Address, Nqn), Referral>> {
    let names = prop_oneof![Just(Nqn::discovery()), "[a-z]{1,4}".prop_map(|it| nqn(&it))];
    btree_map((addresses(), names), any::<bool>(), 0..3).prop_map(|all| {
        let make = |((address, subnqn), secure_channel): ((Address, Nqn), bool)| {
            let place = (address, subnqn.clone());
            (place, Referral { address, subnqn, secure_channel })
        };
        all.into_iter().map(make).collect()
    })
}

/// Subsystems whose namespaces are over these devices.
fn subsystems(devices: Vec<String>) -> impl Strategy<Value = BTreeMap<Nqn, Subsystem>> {
    let device = (0..devices.len().max(1)).prop_map(move |at| devices.get(at).cloned());
    let seen = (option::of(1..=8_u32), option::of(btree_set("[a-z]{1,4}", 0..3)));
    let namespace = (device, option::of(uuids()), option::of(uuids()), seen);
    let texts = || option::of("[A-Za-z0-9]{1,20}");
    let about =
        (texts(), texts(), any::<bool>(), any::<bool>(), 8..=1024_u32, 1..100_u16, 100..60_000_u16);
    let inside = (
        btree_set("[a-z]{1,4}", 0..3),
        btree_map(1..=1024_u32, namespace, 0..4),
        btree_map(addresses(), ana_states(), 0..3),
    );
    btree_map("[a-z]{1,4}", (about, inside), 0..4).prop_map(|subsystems| {
        let make = |name: String, (about, inside)| {
            let (
                serial,
                model,
                allow_any_host,
                ana_reporting,
                max_namespaces,
                min_cntlid,
                max_cntlid,
            ): (_, _, _, bool, _, _, _) = about;
            let (hosts, namespaces, mut listeners): (
                BTreeSet<String>,
                BTreeMap<u32, _>,
                BTreeMap<_, AnaStates>,
            ) = inside;
            if !ana_reporting {
                // Nobody can have set them.
                for states in listeners.values_mut() {
                    states.groups.clear();
                }
            }
            let namespaces =
                namespaces.into_iter().filter_map(|(nsid, (device, uuid, nguid, seen))| {
                    let (anagrpid, hosts): (_, Option<BTreeSet<String>>) = seen;
                    let namespace = Namespace {
                        uuid,
                        nguid,
                        anagrpid,
                        no_auto_visible: hosts.is_some(),
                        hosts: hosts.iter().flatten().map(|it| nqn(it).to_string()).collect(),
                        ..Namespace::over(device?)
                    };
                    Some((nsid, namespace))
                });
            let subsystem = Subsystem {
                nqn: nqn(&name),
                serial,
                model,
                allow_any_host,
                hosts: hosts.iter().map(|host| nqn(host).to_string()).collect(),
                max_namespaces,
                min_cntlid,
                max_cntlid,
                ana_reporting,
                namespaces: namespaces.collect(),
                listeners,
            };
            (subsystem.nqn.clone(), subsystem)
        };
        subsystems.into_iter().map(|(name, it)| make(name, it)).collect()
    })
}

fn all_objects() -> impl Strategy<Value = Objects> {
    devices().prop_flat_map(|(devices, names)| {
        (Just(devices), transports(), subsystems(names), referrals()).prop_map(
            |(devices, transports, mut subsystems, referrals)| {
                // Without one there is nothing to listen on.
                for subsystem in subsystems.values_mut() {
                    subsystem
                        .listeners
                        .retain(|address, _| transports.contains_key(&address.trtype));
                }
                Objects { devices, transports, subsystems, referrals, ..Objects::default() }
            },
        )
    })
}

proptest! {
    #[test]
    fn a_document_of_ours_makes_the_same_state(wanted in all_objects()) {
        let document = document(&State::from(wanted.clone())).unwrap();
        prop_assert_eq!(objects(&document.to_string()).unwrap(), wanted);
    }

    #[test]
    fn what_is_stored_is_what_is_read(wanted in all_objects()) {
        let state = State::from(wanted.clone());
        let changes = State::default().changes(&state).unwrap();
        let stored: Vec<_> =
            changes.into_iter().filter_map(|it| Some((it.key, it.value?))).collect();
        prop_assert_eq!(crate::state::read(&stored).unwrap(), wanted);
    }

    #[test]
    fn what_is_no_document_is_refused(text in "[\\[\\]{}\":,a-z0-9 ]{0,40}", pieces in vec(any::<u8>(), 0..20)) {
        let _ = objects(&text);
        let _ = objects(&String::from_utf8_lossy(&pieces));
    }
}

/// Says what is wrong with the second call of `bdev`, made of this.
fn refusal(call: &Value) -> RpcError {
    let first = json!({ "method": "bdev_null_create", "params": { "name": "a", "num_blocks": 8, "block_size": 512 } });
    let document = json!({ "subsystems": [{ "subsystem": "bdev", "config": [first, call] }] });
    objects(&document.to_string()).unwrap_err()
}

#[test]
fn errors_name_the_place() {
    let twice = json!({ "method": "bdev_null_create", "params": { "name": "a", "num_blocks": 8, "block_size": 512 } });
    let strange = json!({ "method": "bdev_null_create", "params": { "name": "b", "colour": 1 } });
    let hidden = json!({
        "method": "tidegate_bdev_create",
        "params": { "name": "b", "kind": { "ram": { "size": 4096, "block_size": 512, "colour": 1 } } },
    });
    for (call, code, texts) in [
        (twice, -17, ["config[1], bdev_null_create: ", "File exists"]),
        (strange, -32602, ["config[1], bdev_null_create: ", "colour"]),
        (hidden, -32602, ["config[1], tidegate_bdev_create: ", "colour"]),
        (
            json!({ "method": "bdev_rbd_create" }),
            -32601,
            ["config[1], bdev_rbd_create: ", "Method not found"],
        ),
        (
            json!({ "method": "bdev_get_bdevs" }),
            -32601,
            ["config[1], bdev_get_bdevs: ", "Method not found"],
        ),
    ] {
        let refused = refusal(&call);
        assert_eq!(refused.code, code, "{call}: {refused}");
        for text in texts {
            assert!(refused.message.contains(text), "{call}: {refused}");
        }
    }
    for document in
        ["", "[]", "{}", "{\"subsystems\": [{}]}", "{\"subsystems\": [], \"colour\": 1}"]
    {
        assert_eq!(objects(document).unwrap_err().code, -32602, "{document}");
    }
}

#[test]
fn a_listener_needs_its_transport_first() {
    let name = "nqn.2026-11.io.tidegate:it";
    let address = json!({ "trtype": "TCP", "traddr": "192.0.2.1", "trsvcid": "4420" });
    let listen = json!({
        "method": "nvmf_subsystem_add_listener",
        "params": { "nqn": name, "listen_address": address },
    });
    let create = json!({ "method": "nvmf_create_subsystem", "params": { "nqn": name } });
    let transport = json!({ "method": "nvmf_create_transport", "params": { "trtype": "TCP" } });
    let load = |calls: &[&Value]| {
        let document = json!({ "subsystems": [{ "subsystem": "nvmf", "config": calls }] });
        objects(&document.to_string())
    };
    let refused = load(&[&create, &listen, &transport]).unwrap_err();
    assert_eq!(refused.code, -32602);
    for text in ["config[1]", "Invalid parameters", "Unable to find TCP transport", "created first"]
    {
        assert!(refused.message.contains(text), "{refused}");
    }
    assert_eq!(load(&[&create, &transport, &listen]).unwrap().subsystems.len(), 1);
}

/// As SPDK writes it: options first, null where there is nothing, batches, keys that mean nothing here.
#[test]
fn a_document_of_spdk_is_understood() {
    let uuid = "41d1ff9c-5b3c-4d6c-a1e0-0242ac130002";
    let nqn_text = "nqn.2026-11.io.tidegate:from-spdk";
    let document = json!({ "subsystems": [
        { "subsystem": "keyring", "config": [] },
        { "subsystem": "iobuf", "config": [
            { "method": "iobuf_set_options", "params": { "small_pool_count": 8192, "large_pool_count": 1024 } },
        ] },
        { "subsystem": "vmd", "config": null },
        { "subsystem": "bdev", "config": [
            { "method": "bdev_set_options", "params": { "bdev_io_pool_size": 65535, "bdev_auto_examine": true } },
            { "method": "bdev_malloc_create", "params": {
                "name": "Malloc0", "num_blocks": 131_072, "block_size": 512, "physical_block_size": 512, "uuid": uuid,
                "optimal_io_boundary": 0, "md_size": 0, "dif_type": 0, "dif_is_head_of_md": false, "dif_pi_format": 0,
            } },
            { "method": "bdev_wait_for_examine" },
        ] },
        { "subsystem": "nvmf", "config": [
            { "method": "nvmf_set_max_subsystems", "params": { "max_subsystems": 1024 } },
            { "method": "nvmf_create_transport", "params": {
                "trtype": "TCP", "max_queue_depth": 128, "max_io_qpairs_per_ctrlr": 127, "in_capsule_data_size": 4096,
                "max_io_size": 131_072, "io_unit_size": 131_072, "max_aq_depth": 128, "num_shared_buffers": 511,
                "abort_timeout_sec": 1, "zcopy": false, "c2h_success": true, "sock_priority": 0,
            } },
            [{ "method": "nvmf_create_subsystem", "params": {
                "nqn": nqn_text, "allow_any_host": true, "serial_number": "S1", "model_number": "M1",
                "max_namespaces": 32, "min_cntlid": 1, "max_cntlid": 65519, "ana_reporting": false,
            } }],
            [{ "method": "nvmf_subsystem_add_ns", "params": { "nqn": nqn_text, "namespace": {
                "nsid": 1, "bdev_name": "Malloc0", "nguid": "41D1FF9C5B3C4D6CA1E00242AC130002", "uuid": uuid,
                "no_auto_visible": false,
            } } },
            { "method": "nvmf_subsystem_add_listener", "params": {
                "nqn": nqn_text, "secure_channel": false, "sock_impl": "posix",
                "listen_address": { "trtype": "TCP", "adrfam": "IPv4", "traddr": "192.0.2.1", "trsvcid": "4420" },
            } }],
        ] },
    ] });
    let found = objects(&document.to_string()).unwrap();
    let device = &found.devices["Malloc0"];
    assert_eq!(device.uuid, Some(uuid.parse().unwrap()));
    assert_eq!(device.kind, DeviceKind::Ram { size: 64 << 20, block_size: 512, read_only: false });
    let subsystem = &found.subsystems[&nqn("from-spdk")];
    assert_eq!(subsystem.namespaces[&1].device, "Malloc0");
    assert_eq!(subsystem.listeners.len(), 1);
    assert_eq!(found.transports[&Trtype::Tcp].max_queue_depth, Some(128));
}
