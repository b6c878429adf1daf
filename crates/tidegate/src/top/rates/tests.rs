use proptest::prelude::*;

use super::*;

const RATE: u64 = 1_000_000_000;

/// The bucket of a latency, as wide as the node's: an eighth of a power of two.
fn bucket(nanos: u64) -> (u64, u64) {
    if nanos < 1152 {
        return (0, 1152);
    }
    let width = 1 << (nanos.ilog2() - 3);
    (nanos / width * width, (nanos / width + 1) * width)
}

/// Operations that took so long, of 4 KiB each.
fn operations(latencies: &[u64]) -> Operations {
    let mut buckets = BTreeMap::new();
    for nanos in latencies {
        *buckets.entry(bucket(*nanos)).or_insert(0) += 1;
    }
    Operations {
        count: latencies.len() as u64,
        bytes: latencies.len() as u64 * 4096,
        latency_ticks: latencies.iter().sum(),
        latency_buckets: buckets.into_iter().map(|((from, to), count)| (from, to, count)).collect(),
    }
}

/// A device that has done this.
fn device(reads: &[u64], writes: &[u64]) -> Device {
    let classes = [("read", reads), ("write", writes)];
    let classes = classes.into_iter().filter(|(_, latencies)| !latencies.is_empty());
    Device {
        name: "disk".to_owned(),
        size_bytes: Some(1),
        operations: classes.map(|(name, it)| (name.to_owned(), operations(it))).collect(),
        ..Device::default()
    }
}

fn sample(ticks: u64, devices: Vec<Device>) -> Sample {
    Sample { ticks, tick_rate: RATE, devices, ..Sample::default() }
}

fn latencies() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(prop_oneof![0..5_000_u64, 0..10_000_000_000_u64], 0..300)
}

fn is_near(found: f64, exact: f64) -> bool {
    (found - exact).abs() <= exact.abs() * 1e-9 + 1e-9
}

/// What so many thousandths of the latencies did not exceed: the shortest that has as many at or below it.
fn slow_percentile(latencies: &[u64], permille: usize) -> u64 {
    let is_enough = |bound: &u64| {
        let below = latencies.iter().filter(|it| *it <= bound).count();
        below * 1000 >= latencies.len() * permille
    };
    *latencies.iter().filter(|bound| is_enough(bound)).min().unwrap()
}

proptest! {
    #[test]
    fn rates_are_differences_by_time(
        before in (latencies(), latencies()),
        after in (latencies(), latencies()),
        span in 1..20_000_000_000_u64,
    ) {
        let all = |one: &[u64], other: &[u64]| [one, other].concat();
        let then = device(&before.0, &before.1);
        let now = device(&all(&before.0, &after.0), &all(&before.1, &after.1));
        let rates = Rates::between(&sample(7, vec![then]), &sample(7 + span, vec![now])).unwrap();
        let seconds = number(span) / 1e9;
        prop_assert!(is_near(rates.seconds, seconds));
        let [device] = rates.devices.as_slice() else { panic!() };
        let count = |latencies: &[u64]| number(latencies.len() as u64);
        let (reads, writes) = (count(&after.0), count(&after.1));
        prop_assert!(is_near(device.reads * seconds, reads));
        prop_assert!(is_near(device.writes * seconds, writes));
        prop_assert!(is_near(device.operations * seconds, reads + writes));
        prop_assert!(is_near(device.read_mib * seconds, reads / 256.0));
        prop_assert!(is_near(device.written_mib * seconds, writes / 256.0));
        let came = all(&after.0, &after.1);
        prop_assert!(is_near(device.depth * number(span), number(came.iter().sum())));
        prop_assert_eq!(device.percentiles.is_some(), !came.is_empty());
        for (at, permille) in [500, 990, 999].into_iter().enumerate() {
            let Some(found) = device.percentiles.map(|all| all[at] * 1e3) else { continue };
            let exact = slow_percentile(&came, permille);
            prop_assert!(is_near(found, number(bucket(exact).1)), "{} {}", found, exact);
            prop_assert!(found > number(exact) && found <= number(exact.max(1024)) * 1.126);
        }
    }

    /// Whatever was counted under this name before: a counter that is less says that it is another device.
    #[test]
    fn a_device_made_anew_counts_from_zero(
        before in latencies(),
        after in latencies(),
        span in 1..20_000_000_000_u64,
    ) {
        prop_assume!(after.len() < before.len());
        let now = sample(span, vec![device(&after, &after)]);
        let anew = Rates::between(&sample(0, vec![device(&before, &[])]), &now).unwrap();
        let first = Rates::between(&sample(0, Vec::new()), &now).unwrap();
        prop_assert_eq!(anew, first);
    }

    #[test]
    fn a_reactors_time_adds_up(busy in 0..1000_u64, idle in 0..1000_u64, slept in 0..1000_u64) {
        prop_assume!(busy + idle + slept > 0);
        let reactor = |busy, idle| Sample {
            tick_rate: RATE,
            reactors: vec![Reactor { busy, idle, ..Reactor::default() }],
            ..Sample::default()
        };
        let now = Sample { ticks: busy + idle + slept, ..reactor(50 + busy, 70 + idle) };
        let rates = Rates::between(&reactor(50, 70), &now).unwrap();
        let it = &rates.reactors[0];
        prop_assert!(is_near(it.busy + it.idle + it.asleep, 100.0));
        prop_assert!(is_near(it.busy * number(now.ticks), number(busy) * 100.0));
        prop_assert!(is_near(it.asleep * number(now.ticks), number(slept) * 100.0));
    }
}

#[test]
fn controllers_are_told_apart_by_more_than_their_number() {
    let controller = |host: &str, reads| Controller {
        cntlid: 1,
        host: host.to_owned(),
        reads,
        read_bytes: reads << 20,
        ..Controller::default()
    };
    let at = |ticks, controllers| Sample { controllers, ..sample(ticks, Vec::new()) };
    let earlier = at(0, vec![controller("one", 100)]);
    for (now, reads) in [
        (controller("one", 150), 50.0),
        (controller("one", 30), 30.0),
        (controller("other", 300), 300.0),
    ] {
        let rates = Rates::between(&earlier, &at(RATE, vec![now])).unwrap();
        let found = &rates.controllers[0];
        assert!(is_near(found.reads, reads) && is_near(found.read_mib, reads), "{found:?}");
    }
}

#[test]
fn no_time_is_no_rate() {
    let now = sample(5, vec![device(&[1], &[])]);
    assert_eq!(Rates::between(&now, &now), None);
    assert_eq!(Rates::between(&sample(6, Vec::new()), &now), None);
}

#[test]
fn a_reactor_that_did_not_answer_is_shown_by_what_it_counts_itself() {
    let text = r#"{ "tick_rate": 1000, "ticks": 2000, "devices": [], "controllers": [],
        "reactors": [{ "reactor": 1, "core": null, "busy": 500, "idle": 0, "turns": 3, "more": 1 }] }"#;
    let now: Sample = serde_json::from_str(text).unwrap();
    let rates = Rates::between(&Sample { ticks: 1000, ..Sample::default() }, &now).unwrap();
    assert_eq!((rates.reactors[0].number, rates.reactors[0].shard.is_none()), (1, true));
    assert!(is_near(rates.reactors[0].busy, 50.0));
}
