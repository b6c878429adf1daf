//! `tidegate top` beside a daemon that works: what it prints is what happened, and what it draws obeys.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::client::{Client, start};
use crate::provisioning::{perf, provision};
use crate::support::daemon::{NQN, free_port, loopback, run, tidegate};
use crate::support::{PATIENCE, connect, folder, options};
use crate::terminal::Terminal;

/// The tables of one interval.
#[derive(Debug, Default)]
struct Page {
    iops: f64,
    seconds: f64,
    /// Rows as columns by their heads, by the head of the table's first column.
    tables: BTreeMap<String, Vec<BTreeMap<String, String>>>,
}

impl Page {
    fn number(&self, table: &str, row: usize, column: &str) -> f64 {
        let row = self.tables[table].get(row);
        row.and_then(|row| row[column].parse().ok()).unwrap_or(f64::NAN)
    }
}

/// Reads what the batch mode prints, page by page.
struct Pages {
    child: Child,
    lines: Receiver<String>,
}

impl Pages {
    fn of(folder: &Path, arguments: &[&str]) -> Pages {
        let mut child = tidegate(folder)
            .args(["top", "--rpc-socket", "rpc.sock"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Pages { child, lines }
    }

    fn line(&self) -> String {
        let line = self.lines.recv_timeout(PATIENCE).unwrap();
        assert!(!line.contains('\u{1b}'), "{line:?}");
        line
    }

    /// The next page.
    fn next(&self) -> Page {
        let summary = self.line();
        let words: Vec<_> = summary.split_whitespace().collect();
        let mut page = Page {
            iops: words[0].parse().unwrap(),
            seconds: words[words.len() - 2].parse().unwrap(),
            tables: BTreeMap::new(),
        };
        assert_eq!(self.line(), "");
        for _ in 0..3 {
            let heads = self.line();
            let heads: Vec<_> = heads.split_whitespace().map(str::to_owned).collect();
            let mut rows = Vec::new();
            loop {
                let line = self.line();
                if line.is_empty() {
                    break;
                }
                let cells = line.split_whitespace().map(str::to_owned);
                rows.push(heads.iter().cloned().zip(cells).collect());
            }
            page.tables.insert(heads[0].clone(), rows);
        }
        page
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_near(found: f64, exact: f64) -> bool {
    (found - exact).abs() <= exact * 0.02 + 2.0
}

#[test]
fn what_is_printed_adds_up_to_what_was_done() {
    let folder = folder();
    let port = free_port();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    provision(&mut client, port);
    let pages = Pages::of(folder.path(), &["-d", "0.25"]);
    let quiet = pages.next();
    assert_eq!((quiet.iops, quiet.number("DEVICE", 0, "IOPS")), (0.0, 0.0), "{quiet:?}");
    assert_eq!(quiet.tables["DEVICE"][0]["P99us"], "-");
    assert!(quiet.tables["CNTLID"].is_empty());
    assert!(is_near(quiet.seconds, 0.25) || quiet.seconds > 0.25, "{quiet:?}");

    let report =
        perf(folder.path(), port, &["--rw", "randrw", "--bs", "4k", "--runtime", "1500ms"]);
    let iostat = client.call("bdev_get_iostat", &Value::Null)["bdevs"][0].clone();
    let counted = |name: &str| iostat[name].as_f64().unwrap();
    let [mut all, mut reads, mut writes, mut mib] = [0.0; 4];
    let (mut hosts, mut busiest) = (0, 0.0_f64);
    loop {
        let page = pages.next();
        let of = |column| page.number("DEVICE", 0, column);
        all += page.iops * page.seconds;
        reads += of("READ/s") * page.seconds;
        writes += of("WRITE/s") * page.seconds;
        mib += (of("R-MiB/s") + of("W-MiB/s")) * page.seconds;
        if page.iops > 0.0 {
            let [p50, p99, p999] = ["P50us", "P99us", "P99.9us"].map(of);
            assert!(0.0 < p50 && p50 <= p99 && p99 <= p999, "{page:?}");
            let longest = counted("max_read_latency_ticks").max(counted("max_write_latency_ticks"));
            assert!(p999 * 1e3 <= (longest * 1.126).max(1_152.0) + 100.0, "{page:?} {iostat}");
        }
        if let Some(row) = page.tables["CNTLID"].iter().find(|row| row["SUBSYSTEM"] == NQN) {
            hosts += 1;
            assert!(row["PEER"].starts_with("127.0.0.1:"), "{row:?}");
        }
        for row in 0..page.tables["REACTOR"].len() {
            let of = |column| page.number("REACTOR", row, column);
            busiest = busiest.max(of("BUSY%"));
            let time = of("BUSY%") + of("IDLE%") + of("SLEEP%");
            assert!((time - 100.0).abs() < 1.0, "{page:?}");
        }
        if all > 0.0 && page.iops == 0.0 {
            break;
        }
    }
    assert!(is_near(reads, counted("num_read_ops")), "{reads} {iostat}");
    assert!(is_near(writes, counted("num_write_ops")), "{writes} {iostat}");
    assert!(is_near(all, reads + writes), "{all} {reads} {writes}");
    let bytes = counted("bytes_read") + counted("bytes_written");
    assert!(is_near(mib, bytes / 1_048_576.0), "{mib} {iostat}");
    assert!(is_near(reads, report["read"]["ios"].as_f64().unwrap()), "{reads} {report}");
    assert!(hosts > 0 && busiest > 1.0, "{hosts} {busiest}");
}

#[test]
fn one_snapshot_has_what_other_methods_say() {
    let folder = folder();
    let port = free_port();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    provision(&mut client, port);
    perf(folder.path(), port, &["--rw", "randread", "--number-ios", "700"]);
    let (_controller, _queues) = connect(options(loopback(port), NQN, "host"), 2, 8, 4096);
    let all = client.call("tidegate_get_statistics", &Value::Null);
    let iostat = client.call("bdev_get_iostat", &Value::Null)["bdevs"][0].clone();
    let reads = &all["devices"][0]["operations"]["read"];
    assert_eq!(reads["count"], 700);
    for (name, other) in [("bytes", "bytes_read"), ("latency_ticks", "read_latency_ticks")] {
        assert_eq!(reads[name], iostat[other], "{name}");
    }
    let buckets = reads["latency_buckets"].as_array().unwrap();
    let buckets: Vec<[u64; 3]> =
        buckets.iter().map(|it| serde_json::from_value(it.clone()).unwrap()).collect();
    assert_eq!(buckets.iter().map(|[_, _, count]| count).sum::<u64>(), 700);
    assert!(buckets.iter().all(|[from, to, count]| from < to && *count > 0), "{buckets:?}");
    assert!(buckets.windows(2).all(|pair| pair[0][1] <= pair[1][0]), "{buckets:?}");
    let shortest = iostat["min_read_latency_ticks"].as_u64().unwrap();
    assert!(buckets[0][0] <= shortest && shortest < buckets[0][1], "{buckets:?} {iostat}");
    let listed = client.call("nvmf_subsystem_get_controllers", &json!({ "nqn": NQN }));
    let controllers = all["controllers"].as_array().unwrap();
    let ours = controllers.iter().find(|it| it["controller"] == listed[0]["cntlid"]).unwrap();
    assert_eq!((&ours["host"], &ours["subsystem"]), (&listed[0]["hostnqn"], &json!(NQN)));
    assert_eq!(ours["io_queues"], 2);
    assert!(all["reactors"].as_array().unwrap().iter().all(|it| it["pool_bytes"] != 0), "{all}");
    client.refused("tidegate_get_statistics", &json!({ "name": "ram" }));
}

#[test]
fn batch_mode_ends_when_told_and_says_what_is_wrong() {
    let folder = folder();
    let top =
        |more: &[&str]| run(folder.path(), &[&["top", "--rpc-socket", "rpc.sock"], more].concat());
    let gone = top(&[]);
    let said = String::from_utf8(gone.stderr).unwrap();
    assert_eq!((gone.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains("rpc.sock") && said.contains("running"), "{said}");
    for (more, named) in [
        (&["--sort", "colour"][..], "IOPS"),
        (&["-n", "0"], "--iterations"),
        (&["-d", "0"], "seconds"),
        (&["--view", "all"], "devices"),
    ] {
        let wrong = top(more);
        let said = String::from_utf8(wrong.stderr).unwrap();
        assert_eq!(wrong.status.code(), Some(2), "{said}");
        assert!(said.contains(named), "{said}");
    }
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    for name in ["one", "two", "three"] {
        let device = json!({ "name": name, "num_blocks": 8, "block_size": 512 });
        client.call("bdev_null_create", &device);
    }
    let two = top(&["-b", "-n", "2", "-d", "0.1", "--view", "devices", "--sort", "device"]);
    assert!(two.status.success(), "{two:?}");
    let text = String::from_utf8(two.stdout).unwrap();
    let names: Vec<_> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["0", "DEVICE", "one", "three", "two", "0", "DEVICE", "one", "three", "two"]);
    let filtered = top(&["-n", "1", "-d", "0.1", "--view", "devices", "--filter", "T", "-r"]);
    let text = String::from_utf8(filtered.stdout).unwrap();
    assert!(text.contains("two") && text.contains("three") && !text.contains("one"), "{text}");
}

/// Arguments of a live view.
const LIVE: [&str; 5] = ["top", "--rpc-socket", "rpc.sock", "--interval", "0.2"];

#[test]
fn keys_are_obeyed_and_the_terminal_is_put_back() {
    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    provision(&mut client, free_port());
    let mut top = Terminal::run(folder.path(), &LIVE, (120, 30));
    top.shows("the device", |line| line.starts_with("ram "));
    assert!(top.is_raw());
    assert!(top.screen()[2].contains("by IOPS, falling"), "{:?}", top.screen());
    for (keys, shown) in [
        ("1", "by REACTOR, rising"),
        (">", "by CORE, rising"),
        ("r", "by CORE, falling"),
        ("\t", "by IOPS, falling"),
        ("/no", "filter: no_"),
        ("\r", "filter: no"),
        ("?", "scroll"),
    ] {
        top.press(keys);
        top.shows(shown, |line| line.contains(shown));
    }
    top.press("x");
    top.shows("no device left", |line| line == "none");
    top.press("/\u{7f}");
    top.shows("the device again", |line| line.starts_with("ram "));
    top.press("\r ");
    top.shows("it is held", |line| line.ends_with("PAUSED"));
    top.press("q");
    assert!(top.ended().success());
}

#[test]
fn a_signal_puts_the_terminal_back() {
    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut top = Terminal::run(folder.path(), &LIVE, (80, 24));
        top.shows("its title", |line| line.starts_with("tidegate top"));
        top.signal(signal);
        assert!(top.ended().success());
    }
}

#[test]
fn a_daemon_that_is_gone_is_said_and_waited_for() {
    let folder = folder();
    let daemon = start(folder.path(), &[]);
    provision(&mut Client::connect(folder.path()), free_port());
    let mut top = Terminal::run(folder.path(), &LIVE, (120, 30));
    top.shows("figures", |line| line.contains(" MiB/s written"));
    daemon.kill();
    top.shows("what is wrong", |line| line.contains("is the node running"));
    top.shows("the last figures", |line| line.starts_with("ram "));
    let _daemon = start(folder.path(), &[]);
    top.shows("figures", |line| line.contains(" MiB/s written"));
    // Smaller than anything can be shown on, and back.
    top.resize((30, 5));
    top.shows("that it is too small", |line| line.starts_with("too small"));
    top.resize((100, 30));
    top.shows("the device", |line| line.starts_with("ram "));
    top.press("\u{3}");
    assert!(top.ended().success());
}

#[test]
fn a_daemon_that_hangs_holds_up_no_key() {
    let folder = folder();
    let daemon = start(folder.path(), &[]);
    let mut top = Terminal::run(folder.path(), &LIVE, (80, 24));
    top.shows("figures", |line| line.contains(" MiB/s written"));
    daemon.signal(Signal::STOP);
    top.shows("the silence", |line| line.starts_with("no answer for "));
    top.press("1");
    top.shows("the reactors", |line| line.contains("by REACTOR"));
    daemon.signal(Signal::CONT);
    top.shows("figures", |line| line.contains(" MiB/s written"));
    top.press("q");
    assert!(top.ended().success());
}

/// With nowhere left to say so, not even on standard error.
#[test]
fn a_terminal_that_is_gone_is_a_failure_and_no_panic() {
    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    let mut top = Terminal::run(folder.path(), &LIVE, (80, 24));
    top.shows("figures", |line| line.contains(" MiB/s written"));
    assert_eq!(top.hang_up().code(), Some(1));
}
