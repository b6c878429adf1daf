//! Who is connected, as the daemon tells its clients.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::client::{Client, start};
use crate::provisioning::provision;
use crate::support::daemon::{NQN, free_port, loopback};
use crate::support::{connect, folder, options, until};

const QUEUES: u16 = 3;

fn array(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

#[test]
fn controllers_and_queue_pairs_are_listed_while_they_are_there() {
    let folder = folder();
    let port = free_port();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    provision(&mut client, port);
    let nqn = json!({ "nqn": NQN });
    for method in ["nvmf_subsystem_get_controllers", "nvmf_subsystem_get_qpairs"] {
        assert_eq!(client.call(method, &nqn), json!([]));
    }
    let options = options(loopback(port), NQN, "host");
    let host = (options.host.nqn.to_string(), options.host.id.to_string());
    let (controller, queues) = connect(options, QUEUES, 16, 4096);

    let listed = client.call("nvmf_subsystem_get_controllers", &nqn);
    let [one] = array(&listed).as_slice() else { panic!("{listed}") };
    assert_eq!((&one["hostnqn"], &one["hostid"]), (&json!(host.0), &json!(host.1)));
    assert_eq!((&one["num_io_qpairs"], &one["cntrltype"]), (&json!(QUEUES), &json!("io")));
    let pairs = client.call("nvmf_subsystem_get_qpairs", &nqn);
    let mut qids = BTreeSet::new();
    for pair in array(&pairs) {
        assert_eq!(pair["cntlid"], one["cntlid"]);
        assert_eq!((&pair["state"], &pair["hostnqn"]), (&json!("enabled"), &one["hostnqn"]));
        let listen = json!({
            "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string(),
        });
        assert_eq!(pair["listen_address"], listen);
        assert_ne!(pair["peer_address"]["trsvcid"], listen["trsvcid"]);
        let depth = if pair["qid"] == 0 { 32 } else { 17 };
        assert!(pair["tidegate_depth"].as_u64().unwrap().abs_diff(depth) <= 1, "{pair}");
        qids.insert(pair["qid"].as_u64().unwrap());
    }
    assert_eq!(qids, (0..=u64::from(QUEUES)).collect());

    let stats = client.call("nvmf_get_stats", &Value::Null);
    let sum = |name: &str| -> u64 {
        array(&stats["poll_groups"]).iter().map(|it| it[name].as_u64().unwrap()).sum()
    };
    assert_eq!((sum("admin_qpairs"), sum("current_admin_qpairs")), (1, 1));
    let queue_count = u64::from(QUEUES);
    assert_eq!((sum("io_qpairs"), sum("current_io_qpairs")), (queue_count, queue_count));
    // The Connects.
    assert_eq!(sum("completed_nvme_io"), queue_count);

    drop((controller, queues));
    until("the host is gone", || {
        (client.call("nvmf_subsystem_get_qpairs", &nqn) == json!([])).then_some(())
    });
    until("its controller is gone", || {
        (client.call("nvmf_subsystem_get_controllers", &nqn) == json!([])).then_some(())
    });
    for method in ["nvmf_subsystem_get_controllers", "nvmf_subsystem_get_qpairs"] {
        let (code, text) = client.refused(method, &json!({ "nqn": "nqn.2026-11.a:b" }));
        assert_eq!(code, -32602);
        assert!(text.contains("Invalid parameters"), "{text}");
    }
}

#[test]
fn reactors_are_listed_as_threads() {
    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    provision(&mut client, free_port());
    let threads = client.call("thread_get_stats", &Value::Null);
    let reactors = client.call("framework_get_reactors", &Value::Null);
    assert_eq!(array(&threads["threads"]).len(), array(&reactors["reactors"]).len());
    for (thread, reactor) in array(&threads["threads"]).iter().zip(array(&reactors["reactors"])) {
        assert!(thread["name"].as_str().unwrap().contains("poll"), "{thread}");
        assert!(thread["busy"].as_u64().unwrap() > 0, "{thread}");
        let [own] = array(&reactor["lw_threads"]).as_slice() else { panic!("{reactor}") };
        assert_eq!((&own["name"], &own["id"]), (&thread["name"], &thread["id"]));
        let number = |name: &str| reactor[name].as_u64().unwrap();
        assert_eq!(number("busy") + number("idle"), own["elapsed"].as_u64().unwrap());
        assert!(number("idle") >= number("tidegate_sleep"));
    }
    let pollers = client.call("thread_get_pollers", &Value::Null);
    for thread in array(&pollers["threads"]) {
        let names: Vec<_> = array(&thread["active_pollers"]).iter().map(|it| &it["name"]).collect();
        assert!(names.contains(&&json!("target shard")), "{thread}");
    }
    let channels = client.call("thread_get_io_channels", &Value::Null);
    for thread in array(&channels["threads"]) {
        assert_eq!(thread["io_channels"], json!([{ "name": "ram", "ref": 1 }]));
    }
    client.refused("thread_get_stats", &json!({ "any": 1 }));
}
