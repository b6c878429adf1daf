//! RDMA where it cannot run: whoever asks for it is told what is missing, and everything else serves.
//!
//! Where it can is shown over devices in memory (`crates/control/tests/rdma`) and in the virtual machine.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::client::{Client, start_as};
use crate::support::daemon::{Daemon, NQN, file_config, free_port, run, write_config};
use crate::support::folder;

/// What is to be typed where the libraries are missing.
const REMEDY: &str = "install rdma-core's libraries (Debian: libibverbs1 librdmacm1";

/// An address that no machine has: it is for documentation.
const NOWHERE: &str = "192.0.2.1";

/// A daemon that finds nothing but rubbish in the place of RDMA's libraries.
fn start_without_libraries(folder: &Path, more: &[&str]) -> Daemon {
    let rubbish = folder.join("rubbish");
    fs::create_dir_all(&rubbish).unwrap();
    for library in ["libibverbs.so.1", "librdmacm.so.1"] {
        fs::write(rubbish.join(library), "no library").unwrap();
    }
    start_as(folder, more, |command| command.env("LD_LIBRARY_PATH", rubbish))
}

/// A file that has its subsystem served over RDMA, too.
fn with_rdma(port: u16) -> String {
    let tcp = format!("{{ address = \"127.0.0.1\", port = {port} }}");
    let both = format!("{tcp}, {{ transport = \"rdma\", address = \"{NOWHERE}\", port = {port} }}");
    file_config(port, "").replace(&tcp, &both)
}

fn listener(trtype: &str, port: u16) -> Value {
    let address = json!({
        "trtype": trtype, "adrfam": "IPv4", "traddr": NOWHERE, "trsvcid": port.to_string(),
    });
    json!({ "nqn": NQN, "listen_address": address })
}

/// Which transports' listeners are waited for.
fn waiting(client: &mut Client) -> Vec<(String, bool)> {
    let listed = client.call("nvmf_subsystem_get_listeners", &json!({ "nqn": NQN }));
    let each = listed.as_array().unwrap().iter().map(|it| {
        (it["address"]["trtype"].as_str().unwrap().to_owned(), it["tidegate_waiting"] == true)
    });
    each.collect()
}

/// The daemon serves over TCP and waits for RDMA; what it says of that transport.
fn check_waits(folder: &Path, port: u16) -> String {
    let mut client = Client::connect(folder);
    assert_eq!(waiting(&mut client), [("TCP".to_owned(), false), ("RDMA".to_owned(), true)]);
    assert!(run(folder, &["discover", "-s", &port.to_string()]).status.success());
    let transports = client.call("nvmf_get_transports", &json!({ "trtype": "RDMA" }));
    transports[0]["tidegate_waiting"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn without_its_libraries_it_is_waited_for_and_the_rest_serves() {
    let (folder, port) = (folder(), free_port());
    write_config(folder.path(), &with_rdma(port));
    // From the file, and then from the state.
    for arguments in [&["--config", "tidegate.toml"][..], &[]] {
        let daemon = start_without_libraries(folder.path(), arguments);
        assert!(check_waits(folder.path(), port).contains(REMEDY));
        let mut client = Client::connect(folder.path());
        // An address more can only be had when there is something that has it.
        let (code, text) =
            client.refused("nvmf_subsystem_add_listener", &listener("RDMA", free_port()));
        assert!(code == -32602 && text.contains("the transport is not there"), "{text}");
        assert!(client.call("nvmf_get_stats", &Value::Null)["poll_groups"].is_array());
        daemon.signal(Signal::TERM);
        let (status, said, _) = daemon.wait();
        assert!(status.success(), "{said}");
        let lines: Vec<_> = said.lines().filter(|line| line.contains("RDMA")).collect();
        assert!(lines.len() == 1 && lines[0].contains(REMEDY), "one line, once: {said}");
    }
}

#[test]
fn a_client_is_told_what_to_install() {
    let folder = folder();
    let _daemon = start_without_libraries(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    let before = client.call("save_config", &Value::Null);
    let rdma = json!({ "trtype": "RDMA" });
    let (code, text) = client.refused("nvmf_create_transport", &rdma);
    assert_eq!(code, -32603);
    assert!(text.contains(REMEDY) && !text.contains('\n'), "{text}");
    assert_eq!(client.call("save_config", &Value::Null), before);
    let nqn = json!({ "nqn": NQN });
    client.call("nvmf_create_subsystem", &nqn);
    let (_, text) = client.refused("nvmf_subsystem_add_listener", &listener("RDMA", 4420));
    assert!(text.contains("Unable to find RDMA transport"), "{text}");
    // The rest is as ever.
    client.call("nvmf_create_transport", &json!({ "trtype": "TCP" }));
}

#[test]
fn an_address_that_no_device_has_is_waited_for() {
    let (folder, port) = (folder(), free_port());
    write_config(folder.path(), &with_rdma(port));
    // As this machine is: it may lack the libraries, the kernel's module, or just the address.
    let arguments = ["--config", "tidegate.toml"];
    let daemon = start_as(folder.path(), &arguments, |command| command);
    check_waits(folder.path(), port);
    let mut client = Client::connect(folder.path());
    let saved = client.call("save_config", &Value::Null);
    daemon.signal(Signal::TERM);
    let (status, said, _) = daemon.wait();
    assert!(status.success() && said.contains("tried again"), "{said}");

    // What was saved is the same again.
    fs::remove_dir_all(folder.path().join("state")).unwrap();
    fs::write(folder.path().join("saved.json"), saved.to_string()).unwrap();
    let _daemon = start_as(folder.path(), &["--json", "saved.json"], |command| command);
    check_waits(folder.path(), port);
    let mut client = Client::connect(folder.path());
    assert_eq!(client.call("save_config", &Value::Null), saved);
    // An address that is waited for can be removed.
    client.call("nvmf_subsystem_remove_listener", &listener("RDMA", port));
    assert_eq!(waiting(&mut client), [("TCP".to_owned(), false)]);
}

#[test]
fn its_addresses_can_be_referred_to() {
    let (folder, port) = (folder(), free_port());
    let _daemon = start_without_libraries(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    crate::provisioning::provision(&mut client, port);
    let address = listener("rdma", 8009)["listen_address"].clone();
    client.call("nvmf_discovery_add_referral", &json!({ "address": address }));
    let listed = client.call("nvmf_discovery_get_referrals", &Value::Null);
    assert_eq!(listed[0]["address"]["trtype"], "RDMA");
    let log =
        crate::support::daemon::run_json(folder.path(), &["discover", "-s", &port.to_string()]);
    assert!(log.to_string().contains("rdma"), "{log}");
}
