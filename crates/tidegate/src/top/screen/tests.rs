use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::{Buffer, Cell};
use ratatui::crossterm::event::KeyCode;

use super::super::state::tests::{press, sample, state};
use super::*;

fn look(is_utf8: bool, has_colour: bool) -> Look {
    Look { title: "tidegate top  rpc.sock".to_owned(), charset: Charset { is_utf8 }, has_colour }
}

fn drawn(state: &State, look: &Look, (width, height): (u16, u16)) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, state, look)).unwrap();
    terminal.backend().buffer().clone()
}

/// What stands there, line by line.
fn lines(buffer: &Buffer) -> Vec<String> {
    let width = usize::from(buffer.area.width);
    let lines = buffer.content.chunks(width);
    let lines = lines.map(|line| line.iter().map(Cell::symbol).collect::<String>());
    lines.map(|line| line.trim_end().to_owned()).collect()
}

fn shown(names: &[&str]) -> State {
    let mut state = state();
    state.sampled(Ok(sample(1, &[])));
    let devices: Vec<_> = names.iter().zip(1..).map(|(name, count)| (*name, count * 10)).collect();
    state.sampled(Ok(sample(2, &devices)));
    state
}

#[test]
fn all_three_tables_where_there_is_room() {
    let state = shown(&["disk", "ram"]);
    let found = lines(&drawn(&state, &look(true, true), (100, 20)));
    let expected = "\
tidegate top  rpc.sock
30 IOPS, 30.0 MiB/s read, 0.0 MiB/s written, over 1.000 s
 1 Reactors   2 Devices   3 Controllers   by IOPS, falling

REACTOR  CORE  BUSY%  IDLE%  SLEEP%  TURN/s  CMD/s  FAIL/s  WAIT/s  POOL%  REQS  QUEUES  CTRLS
      0     -    0.0    0.0   100.0       0      -       -       -      -     -       -      -

DEVICE  IOPS  READ/s  WRITE/s  R-MiB/s  W-MiB/s  DEPTH  INSIDE  P50us  P99us  P99.9us  ERR/s  STATE
ram       20      20        0     20.0      0.0    0.0       0  106.5  106.5    106.5      0  up
disk      10      10        0     10.0      0.0    0.0       0  106.5  106.5    106.5      0  up

CNTLID  IOPS  READ/s  WRITE/s  R-MiB/s  W-MiB/s  MERR/s  QUEUES  PEER  HOST
     7     0       0        0      0.0      0.0       0       0  -     nqn.2014-08.org.example:host






1 2 3 Tab view  < > sort  r reverse  / filter  Space pause  ? help  q quit";
    assert_eq!(found, expected.lines().collect::<Vec<_>>());
}

#[test]
fn one_table_and_a_way_through_it_where_there_is_not() {
    let names: Vec<String> = (10..60).map(|number| format!("disk{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut state = shown(&names);
    let small = (60, 12);
    let first = lines(&drawn(&state, &look(true, true), small));
    assert!(first[4].starts_with("DEVICE") && first[5].starts_with("disk59"), "{first:?}");
    assert!(first[10].starts_with("disk54") && first[11].starts_with("1 2 3"), "{first:?}");
    press(&mut state, "r");
    let reversed = lines(&drawn(&state, &look(true, true), small));
    assert!(reversed[5].starts_with("disk10"), "{reversed:?}");
    state.offset = 1000;
    let last = lines(&drawn(&state, &look(true, true), small));
    assert!(last[10].starts_with("disk59"), "{last:?}");
    press(&mut state, "3");
    let other = lines(&drawn(&state, &look(true, true), small));
    assert!(other[4].starts_with("CNTLID") && other[5].starts_with("     7"), "{other:?}");
    press(&mut state, "2/zzz");
    let none = lines(&drawn(&state, &look(true, true), small));
    assert!(none[2].contains("filter: zzz_"), "{none:?}");
    assert!(none.contains(&"none".to_owned()), "{none:?}");
}

#[test]
fn columns_that_do_not_fit_can_be_come_by() {
    let mut state = shown(&["disk"]);
    press(&mut state, "3");
    let heads = |state: &State| lines(&drawn(state, &look(true, true), (60, 9)))[4].clone();
    assert!(heads(&state).starts_with("CNTLID  IOPS") && !heads(&state).contains("HOST"));
    for _ in 0..20 {
        state.key(KeyCode::Right.into());
    }
    assert_eq!(heads(&state), "CNTLID  SUBSYSTEM");
    state.key(KeyCode::Left.into());
    assert!(heads(&state).starts_with("CNTLID  HOST"));
    press(&mut state, "13");
    assert!(heads(&state).starts_with("CNTLID  IOPS"));
}

#[test]
fn what_is_wrong_is_said() {
    let mut state = shown(&["disk"]);
    state.silence = Some(std::time::Duration::from_secs(12));
    assert_eq!(lines(&drawn(&state, &look(true, true), (80, 20)))[1], "no answer for 12 s");
    state.sampled(Err("rpc.sock: is it running?".to_owned()));
    press(&mut state, " ");
    let found = lines(&drawn(&state, &look(true, true), (80, 20)));
    assert_eq!(found[0], "tidegate top  rpc.sock  PAUSED");
    assert_eq!(found[1], "rpc.sock: is it running?");
    assert!(found.iter().any(|line| line.starts_with("disk")), "{found:?}");
    press(&mut state, "?");
    let help = lines(&drawn(&state, &look(true, true), (80, 24)));
    assert!(help.iter().any(|line| line.starts_with("Space ")), "{help:?}");
    assert!(help.iter().any(|line| line.starts_with("Any key")), "{help:?}");
}

#[test]
fn no_size_is_too_small_to_draw() {
    let state = shown(&["disk"]);
    for width in 1..60 {
        for height in 1..14 {
            let found = lines(&drawn(&state, &look(true, true), (width, height)));
            let is_large = width >= SMALLEST.0 && height >= SMALLEST.1;
            let expected = if is_large { "tidegate" } else { "too small" };
            let word = &expected[..expected.len().min(width.into())];
            assert!(found[0].starts_with(word.trim_end()), "{width} x {height}: {found:?}");
        }
    }
}

#[test]
fn names_cannot_command_the_terminal() {
    let state = shown(&["a\u{1b}[31mb\n", "plätze"]);
    let found = lines(&drawn(&state, &look(true, true), (100, 20))).concat();
    assert!(found.contains("a?[31mb?") && found.contains("plätze"), "{found}");
    let found = lines(&drawn(&state, &look(false, true), (100, 20))).concat();
    assert!(found.contains("pl?tze") && found.is_ascii(), "{found}");
}

#[test]
fn no_colour_means_none() {
    let mut state = shown(&["disk"]);
    state.sampled(Err("gone".to_owned()));
    press(&mut state, " ");
    let coloured = |has_colour| {
        let buffer = drawn(&state, &look(true, has_colour), (100, 20));
        buffer.content.iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
    };
    assert!(coloured(true) && !coloured(false));
}
