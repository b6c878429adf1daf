//! Which methods there are: by what the daemon says, and by what the documentation says.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::client::{Client, start};
use crate::support::folder;

#[test]
fn every_method_is_listed() {
    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    let listed = client.call("rpc_get_methods", &Value::Null);
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
    assert!(names.contains(&"nvmf_create_subsystem") && names.contains(&"spdk_get_version"));
    for name in names {
        // Whatever it says of parameters that no method has, it is there.
        if let Err((code, text)) =
            client.try_call(name, &json!({ "no_method_has_this": 1 })).unwrap()
        {
            assert_ne!(code, -32601, "{name}: {text}");
        }
    }
}

/// Name and state of each row of a table of `docs/rpc.md` that has so many columns.
fn rows(page: &str, columns: usize) -> Vec<(&str, &str)> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows = rows.filter(|row| row.matches('|').count() == columns);
    rows.map(|row| {
        let (name, rest) = row.split_once("` | ").unwrap();
        (name, rest.split_once(" |").unwrap().0)
    })
    .collect()
}

#[test]
fn the_documentation_tells_what_is_there() {
    let page = include_str!("../../../../docs/rpc.md");
    let (ours, of_spdk) = (rows(page, 2), rows(page, 3));
    assert_eq!(of_spdk.len(), 296, "SPDK v26.05 has as many");
    assert!(of_spdk.is_sorted_by(|one, other| one.0 < other.0));
    let mut states: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, state) in of_spdk {
        states.entry(state).or_default().push(name);
    }
    assert_eq!(
        states.keys().copied().collect::<Vec<_>>(),
        ["accepted", "done", "out of scope", "planned"]
    );
    let mut told = [&states["accepted"][..], &states["done"][..]].concat();
    told.extend(ours.iter().map(|(name, _)| *name));
    told.sort_unstable();

    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    assert_eq!(client.call("rpc_get_methods", &Value::Null), json!(told));
    for name in &states["accepted"] {
        assert_eq!(client.call(name, &json!({ "anything": [1] })), true, "{name}");
    }
}
