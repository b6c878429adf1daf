use proptest::prelude::*;

use super::super::sample::{Controller, Device, Operations, Reactor};
use super::*;

/// A node with devices that have done so many reads each, a reactor and a controller.
pub(in crate::top) fn sample(seconds: u64, devices: &[(&str, u64)]) -> Sample {
    let device = |(name, count): &(&str, u64)| {
        let reads = Operations {
            count: *count,
            bytes: count << 20,
            latency_ticks: count * 100_000,
            latency_buckets: vec![(98_304, 106_496, *count)],
        };
        Device {
            name: (*name).to_owned(),
            size_bytes: Some(1),
            operations: [("read".to_owned(), reads)].into(),
            ..Device::default()
        }
    };
    Sample {
        ticks: seconds * 1_000_000_000,
        tick_rate: 1_000_000_000,
        reactors: vec![Reactor::default()],
        devices: devices.iter().map(device).collect(),
        controllers: vec![Controller {
            cntlid: 7,
            host: "nqn.2014-08.org.example:host".to_owned(),
            ..Controller::default()
        }],
    }
}

pub(in crate::top) fn state() -> State {
    State::new(View::Devices, View::ALL.map(View::default_sort), String::new())
}

pub(in crate::top) fn press(state: &mut State, keys: &str) {
    for key in keys.chars() {
        let code = match key {
            '\n' => KeyCode::Enter,
            '\t' => KeyCode::Tab,
            '\u{1b}' => KeyCode::Esc,
            key => KeyCode::Char(key),
        };
        assert_eq!(state.key(code.into()), Next::GoOn, "{keys}");
    }
}

/// The first column.
fn names(state: &State) -> Vec<String> {
    let rows = state.rows(View::Devices).into_iter();
    let names = rows.map(|row| match &row[0] {
        Cell::Text(name) => name.clone(),
        other => panic!("{other:?}"),
    });
    names.collect()
}

/// One that shows three devices.
fn shown() -> State {
    let mut state = state();
    assert_eq!(state.sampled(Ok(sample(1, &[]))), None);
    let now = sample(2, &[("beta", 20), ("Alpha", 10), ("gamma", 20)]);
    assert!(state.sampled(Ok(now)).is_some());
    state
}

#[test]
fn keys_sort_and_filter() {
    let mut state = shown();
    assert_eq!(names(&state), ["beta", "gamma", "Alpha"]);
    press(&mut state, "r");
    assert_eq!(names(&state), ["Alpha", "beta", "gamma"]);
    press(&mut state, "r<");
    assert_eq!(names(&state), ["Alpha", "beta", "gamma"]);
    press(&mut state, "r");
    assert_eq!(names(&state), ["gamma", "beta", "Alpha"]);
    press(&mut state, "/ALPH");
    assert_eq!(names(&state), ["Alpha"]);
    press(&mut state, "\n<");
    assert_eq!((names(&state).len(), state.is_typing), (1, false));
    press(&mut state, "/x\u{1b}");
    assert_eq!((names(&state).len(), state.is_typing), (3, false));
    // All the way around, one comes back.
    let before = state.sort(View::Devices);
    press(&mut state, &">".repeat(View::Devices.columns().len()));
    assert_eq!(state.sort(View::Devices).column, before.column);
}

#[test]
fn keys_choose_the_view() {
    let mut state = shown();
    for (keys, view) in [
        ("1", View::Reactors),
        ("\t", View::Devices),
        ("\t", View::Controllers),
        ("\t", View::Reactors),
        ("3", View::Controllers),
        ("2", View::Devices),
    ] {
        press(&mut state, keys);
        assert_eq!(state.view, view, "{keys}");
    }
    state.key(KeyCode::BackTab.into());
    assert_eq!(state.view, View::Reactors);
}

#[test]
fn what_is_held_goes_on_from_now() {
    let mut state = shown();
    press(&mut state, " ");
    let held = state.rates.clone();
    state.sampled(Ok(sample(3, &[("beta", 1000)])));
    assert_eq!(state.rates, held);
    press(&mut state, " ");
    state.sampled(Ok(sample(4, &[("beta", 1030)])));
    assert!((state.rates.as_ref().unwrap().devices[0].reads - 30.0).abs() < 1e-9);
}

#[test]
fn after_a_failure_nothing_is_compared_with_before() {
    let mut state = shown();
    let last = state.rates.clone();
    assert_eq!(state.sampled(Err("gone".to_owned())), None);
    assert_eq!((state.trouble.as_deref(), &state.rates), (Some("gone"), &last));
    // Another process, which has counted more than the one before had.
    assert_eq!(state.sampled(Ok(sample(3, &[("beta", 5000)]))), None);
    assert_eq!((&state.trouble, &state.rates), (&None, &last));
    let rates = state.sampled(Ok(sample(4, &[("beta", 5005)]))).unwrap();
    assert!((rates.devices[0].reads - 5.0).abs() < 1e-9);
}

#[test]
fn every_way_to_quit() {
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    for key in [KeyCode::Char('q').into(), KeyCode::Esc.into(), control_c] {
        assert_eq!(shown().key(key), Next::Quit);
    }
    // Where something is open, Esc closes that; Ctrl-C always quits.
    for open in ["?", "/"] {
        let mut state = shown();
        press(&mut state, open);
        assert_eq!(state.key(KeyCode::Esc.into()), Next::GoOn);
        assert_eq!((state.is_helping, state.is_typing), (false, false));
        press(&mut state, open);
        assert_eq!(state.key(control_c), Next::Quit);
    }
}

proptest! {
    /// Rows are sorted by what is shown, whatever it is; what is not known comes last both ways.
    #[test]
    fn rows_are_in_order(counts in prop::collection::vec(0..50_u64, 0..20), column in 0..13_usize, descending: bool) {
        let names: Vec<_> = counts.iter().map(|count| format!("disk{}", count % 7)).collect();
        let devices: Vec<_> = names.iter().map(String::as_str).zip(counts).collect();
        let sort = Sort { column, descending };
        let mut state = State::new(View::Devices, [sort; 3], String::new());
        state.sampled(Ok(sample(1, &[])));
        state.sampled(Ok(sample(2, &devices)));
        let rows = state.rows(View::Devices);
        prop_assert_eq!(rows.len(), devices.len());
        for pair in rows.windows(2) {
            let in_order = match (&pair[0][column], &pair[1][column]) {
                (Cell::Number(one), Cell::Number(other)) if descending => one >= other,
                (Cell::Number(one), Cell::Number(other)) => one <= other,
                (Cell::Text(one), Cell::Text(other)) if descending => one >= other,
                (Cell::Text(one), Cell::Text(other)) => one <= other,
                (one, other) => *other == Cell::Unknown || one == other,
            };
            prop_assert!(in_order, "{:?}", pair);
        }
    }
}
