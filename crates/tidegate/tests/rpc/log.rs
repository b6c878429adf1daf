//! What is logged, changed while the daemon runs.

use serde_json::{Value, json};

use crate::client::{Client, start};
use crate::support::daemon::{file_config, free_port, run, write_config};
use crate::support::{folder, until};

#[test]
fn context_switches_are_logged_while_somebody_wants_them() {
    let folder = folder();
    write_config(folder.path(), &file_config(free_port(), ""));
    let daemon = start(folder.path(), &["--config", "tidegate.toml"]);
    let mut client = Client::connect(folder.path());
    let mut monitor = |params: Value| client.call("framework_monitor_context_switch", &params);
    assert_eq!(monitor(Value::Null), json!({ "enabled": false }));
    assert_eq!(monitor(json!({ "enabled": true })), json!({ "enabled": true }));
    assert_eq!(monitor(json!({})), json!({ "enabled": true }));
    // A reactor that has a namespace and nothing to do sleeps, and wakes to look at its clock.
    until("a line of a reactor", || {
        daemon.errors().contains("context switches in the last second").then_some(())
    });
    assert_eq!(monitor(json!({ "enabled": false })), json!({ "enabled": false }));
}

#[test]
fn levels_and_flags_are_changed_while_it_runs() {
    let folder = folder();
    let port = free_port();
    write_config(folder.path(), &file_config(port, ""));
    let daemon = start(folder.path(), &["--config", "tidegate.toml"]);
    let mut client = Client::connect(folder.path());
    let port = port.to_string();
    let discover = || assert!(run(folder.path(), &["discover", "-s", &port]).status.success());
    let lines = || daemon.errors().matches("connected to").count();
    assert_eq!(client.call("log_get_level", &Value::Null), "INFO");
    discover();
    assert_eq!(lines(), 0);

    assert_eq!(client.call("log_set_flag", &json!({ "flag": "nvmf_tcp" })), true);
    let flags = client.call("log_get_flags", &Value::Null);
    assert_eq!((&flags["nvmf_tcp"], &flags["bdev"]), (&json!(true), &json!(false)));
    discover();
    until("a connection is logged", || (lines() == 1).then_some(()));
    assert_eq!(client.call("log_clear_flag", &json!({ "flag": "all" })), true);
    assert_eq!(client.call("log_set_print_level", &json!({ "level": "debug" })), true);
    assert_eq!(client.call("log_get_level", &Value::Null), "DEBUG");
    discover();
    until("another one is logged", || (lines() == 2).then_some(()));
    assert_eq!(client.call("log_set_level", &json!({ "level": "NOTICE" })), true);
    assert_eq!(client.call("log_get_print_level", &Value::Null), "NOTICE");
    discover();
    assert_eq!(lines(), 2);

    for (method, params) in [
        ("log_set_level", json!({ "level": "LOUD" })),
        ("log_set_flag", json!({ "flag": "none" })),
        ("log_get_flags", json!({ "colour": 1 })),
    ] {
        assert_eq!(client.refused(method, &params).0, -32602, "{method}");
    }
}
