//! Rates as tables: which columns there are, how they are sorted, and what they look like as text.
//!
//! Units stand in the heads of the columns, so that a cell is a bare number: it can be compared by eye, and cut out
//! of the batch mode's output.

use std::cmp::Ordering;

use clap::ValueEnum;
use ratatui::text::Span;

use super::rates::{ControllerRates, DeviceRates, Rates, ReactorRates, ShardRates, number};

/// Which table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum View {
    /// The threads that do the work.
    Reactors,
    /// The block devices.
    Devices,
    /// The hosts that are connected.
    Controllers,
}

impl View {
    pub(super) const ALL: [Self; 3] = [Self::Reactors, Self::Devices, Self::Controllers];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Reactors => "Reactors",
            Self::Devices => "Devices",
            Self::Controllers => "Controllers",
        }
    }

    /// Its columns.
    pub(super) fn columns(self) -> Vec<Column> {
        match self {
            Self::Reactors => REACTORS.iter().map(|it| it.0).collect(),
            Self::Devices => DEVICES.iter().map(|it| it.0).collect(),
            Self::Controllers => CONTROLLERS.iter().map(|it| it.0).collect(),
        }
    }

    /// Its rows.
    fn rows(self, rates: &Rates) -> Vec<Vec<Cell>> {
        fn rows<T>(things: &[T], columns: &[Shows<T>]) -> Vec<Vec<Cell>> {
            things.iter().map(|it| columns.iter().map(|(_, cell)| cell(it)).collect()).collect()
        }
        match self {
            Self::Reactors => rows(&rates.reactors, REACTORS),
            Self::Devices => rows(&rates.devices, DEVICES),
            Self::Controllers => rows(&rates.controllers, CONTROLLERS),
        }
    }

    /// How it is sorted until somebody says otherwise.
    pub(super) fn default_sort(self) -> Sort {
        let busiest = match self {
            Self::Reactors => "REACTOR",
            Self::Devices | Self::Controllers => "IOPS",
        };
        self.sort_by(busiest).unwrap_or(Sort { column: 0, descending: false })
    }

    /// Sorted by the column of this name, if it has one.
    pub(super) fn sort_by(self, name: &str) -> Option<Sort> {
        let columns = self.columns();
        let column = columns.iter().position(|it| it.name.eq_ignore_ascii_case(name))?;
        Some(Sort { column, descending: columns.get(column)?.kind.is_descending() })
    }
}

/// A column: what its head says, and what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
}

/// What a column has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    /// Numbers that name things.
    Id,
    /// Numbers shown whole.
    Whole,
    /// Numbers shown to a tenth.
    Tenths,
}

impl Kind {
    /// Whether one wants to see the largest first.
    pub(super) fn is_descending(self) -> bool {
        matches!(self, Self::Whole | Self::Tenths)
    }
}

/// Something in a table.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    Text(String),
    Number(f64),
    Unknown,
}

impl Cell {
    fn of<T>(value: Option<T>, cell: impl Fn(T) -> Self) -> Self {
        value.map_or(Self::Unknown, cell)
    }
}

/// A column of a table of such things, and what of one is in it.
type Shows<T> = (Column, fn(&T) -> Cell);

const fn column(name: &'static str, kind: Kind) -> Column {
    Column { name, kind }
}

fn shard(it: &ReactorRates, value: impl Fn(&ShardRates) -> f64) -> Cell {
    Cell::of(it.shard.as_ref(), |shard| Cell::Number(value(shard)))
}

fn percentile(it: &DeviceRates, which: impl Fn(&[f64; 3]) -> f64) -> Cell {
    Cell::of(it.percentiles.as_ref(), |all| Cell::Number(which(all)))
}

const REACTORS: &[Shows<ReactorRates>] = &[
    (column("REACTOR", Kind::Id), |it| Cell::Number(number(it.number))),
    (column("CORE", Kind::Id), |it| Cell::of(it.core, |core| Cell::Number(number(core)))),
    (column("BUSY%", Kind::Tenths), |it| Cell::Number(it.busy)),
    (column("IDLE%", Kind::Tenths), |it| Cell::Number(it.idle)),
    (column("SLEEP%", Kind::Tenths), |it| Cell::Number(it.asleep)),
    (column("TURN/s", Kind::Whole), |it| Cell::Number(it.turns)),
    (column("CMD/s", Kind::Whole), |it| shard(it, |it| it.commands)),
    (column("FAIL/s", Kind::Whole), |it| shard(it, |it| it.failed)),
    (column("WAIT/s", Kind::Whole), |it| shard(it, |it| it.waits)),
    (column("POOL%", Kind::Tenths), |it| shard(it, |it| it.pool)),
    (column("REQS", Kind::Whole), |it| shard(it, |it| number(it.requests))),
    (column("QUEUES", Kind::Whole), |it| shard(it, |it| number(it.queues))),
    (column("CTRLS", Kind::Whole), |it| shard(it, |it| number(it.controllers))),
];

const DEVICES: &[Shows<DeviceRates>] = &[
    (column("DEVICE", Kind::Text), |it| Cell::Text(it.name.clone())),
    (column("IOPS", Kind::Whole), |it| Cell::Number(it.operations)),
    (column("READ/s", Kind::Whole), |it| Cell::Number(it.reads)),
    (column("WRITE/s", Kind::Whole), |it| Cell::Number(it.writes)),
    (column("R-MiB/s", Kind::Tenths), |it| Cell::Number(it.read_mib)),
    (column("W-MiB/s", Kind::Tenths), |it| Cell::Number(it.written_mib)),
    (column("DEPTH", Kind::Tenths), |it| Cell::Number(it.depth)),
    (column("INSIDE", Kind::Whole), |it| Cell::Number(number(it.in_flight))),
    (column("P50us", Kind::Tenths), |it| percentile(it, |[median, _, _]| *median)),
    (column("P99us", Kind::Tenths), |it| percentile(it, |[_, p99, _]| *p99)),
    (column("P99.9us", Kind::Tenths), |it| percentile(it, |[_, _, p999]| *p999)),
    (column("ERR/s", Kind::Whole), |it| Cell::Number(it.errors)),
    (column("STATE", Kind::Text), |it| {
        Cell::Text(if it.is_up { "up" } else { "waiting" }.to_owned())
    }),
];

const CONTROLLERS: &[Shows<ControllerRates>] = &[
    (column("CNTLID", Kind::Id), |it| Cell::Number(it.cntlid.into())),
    (column("IOPS", Kind::Whole), |it| Cell::Number(it.reads + it.writes)),
    (column("READ/s", Kind::Whole), |it| Cell::Number(it.reads)),
    (column("WRITE/s", Kind::Whole), |it| Cell::Number(it.writes)),
    (column("R-MiB/s", Kind::Tenths), |it| Cell::Number(it.read_mib)),
    (column("W-MiB/s", Kind::Tenths), |it| Cell::Number(it.written_mib)),
    (column("MERR/s", Kind::Whole), |it| Cell::Number(it.media_errors)),
    (column("QUEUES", Kind::Whole), |it| Cell::Number(number(it.io_queues))),
    (column("PEER", Kind::Text), |it| Cell::of(it.peer.clone(), Cell::Text)),
    (column("HOST", Kind::Text), |it| Cell::Text(it.host.clone())),
    (column("SUBSYSTEM", Kind::Text), |it| Cell::Text(it.subsystem.clone())),
];

/// In which order rows come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sort {
    pub(super) column: usize,
    pub(super) descending: bool,
}

impl Sort {
    /// What is not known comes last, and what is equal as it came.
    fn compare(self, one: &[Cell], other: &[Cell]) -> Ordering {
        let order = match (one.get(self.column), other.get(self.column)) {
            (Some(Cell::Number(one)), Some(Cell::Number(other))) => one.total_cmp(other),
            (Some(Cell::Text(one)), Some(Cell::Text(other))) => one.cmp(other),
            (Some(Cell::Unknown) | None, Some(Cell::Unknown) | None) => return Ordering::Equal,
            (Some(Cell::Unknown) | None, _) => return Ordering::Greater,
            (_, Some(Cell::Unknown) | None) => return Ordering::Less,
            // A column has one kind.
            (Some(Cell::Number(_)), Some(Cell::Text(_))) => Ordering::Less,
            (Some(Cell::Text(_)), Some(Cell::Number(_))) => Ordering::Greater,
        };
        if self.descending { order.reverse() } else { order }
    }
}

/// The rows to be shown: those in which some text has `filter` in it, whatever its case, in this order.
pub(super) fn rows(view: View, rates: &Rates, sort: Sort, filter: &str) -> Vec<Vec<Cell>> {
    let filter = filter.to_lowercase();
    let is_wanted = |row: &Vec<Cell>| {
        filter.is_empty()
            || row.iter().any(
                |cell| matches!(cell, Cell::Text(text) if text.to_lowercase().contains(&filter)),
            )
    };
    let mut rows = view.rows(rates);
    rows.retain(is_wanted);
    rows.sort_by(|one, other| sort.compare(one, other));
    rows
}

/// What a terminal can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Charset {
    pub(super) is_utf8: bool,
}

impl Charset {
    /// By what the environment says of the locale.
    pub(super) fn of_environment() -> Self {
        let set = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG"));
        let locale = locale.unwrap_or_default().to_ascii_lowercase();
        Self { is_utf8: locale.contains("utf-8") || locale.contains("utf8") }
    }

    /// A text from elsewhere without anything that a terminal would obey, or would not understand.
    pub(super) fn shown(self, text: &str) -> String {
        let is_shown = |c: char| !c.is_control() && (self.is_utf8 || c.is_ascii());
        text.chars().map(|c| if is_shown(c) { c } else { '?' }).collect()
    }
}

/// Heads and rows as texts of the same width in each column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) heads: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

/// Between two columns.
pub(super) const GAP: &str = "  ";

impl Layout {
    pub(super) fn new(columns: &[Column], rows: &[Vec<Cell>], charset: Charset) -> Self {
        let text = |column: &Column, cell: &Cell| match (cell, column.kind) {
            (Cell::Unknown, _) => "-".to_owned(),
            (Cell::Text(text), _) => charset.shown(text),
            (Cell::Number(number), Kind::Tenths) => format!("{number:.1}"),
            (Cell::Number(number), _) => format!("{number:.0}"),
        };
        let texts = rows.iter().map(|row| columns.iter().zip(row).map(|(c, cell)| text(c, cell)));
        let mut texts: Vec<Vec<String>> = texts.map(Iterator::collect).collect();
        let mut heads: Vec<String> = columns.iter().map(|it| it.name.to_owned()).collect();
        for (at, column) in columns.iter().enumerate() {
            let cells = || texts.iter().chain([&heads]).filter_map(|row| row.get(at));
            let widest = cells().map(|text| width(text)).max().unwrap_or(0);
            for row in texts.iter_mut().chain([&mut heads]) {
                let Some(text) = row.get_mut(at) else { continue };
                let room = " ".repeat(widest.saturating_sub(width(text)));
                *text = match column.kind {
                    Kind::Text => format!("{text}{room}"),
                    Kind::Id | Kind::Whole | Kind::Tenths => format!("{room}{text}"),
                };
            }
        }
        Self { heads, rows: texts }
    }

    /// A line for the heads and one for each row.
    pub(super) fn lines(&self) -> impl Iterator<Item = String> {
        let lines = [&self.heads].into_iter().chain(&self.rows);
        lines.map(|row| row.join(GAP).trim_end().to_owned())
    }
}

/// Cells of a terminal that a text takes.
fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// Everything together in one line.
pub(super) fn summary(rates: &Rates) -> String {
    let sum = |value: fn(&DeviceRates) -> f64| rates.devices.iter().map(value).sum::<f64>();
    format!(
        "{:.0} IOPS, {:.1} MiB/s read, {:.1} MiB/s written, over {:.3} s",
        sum(|it| it.operations),
        sum(|it| it.read_mib),
        sum(|it| it.written_mib),
        rates.seconds,
    )
}
