//! `tidegate top`: what a running node is doing, second by second, over its RPC socket.
//!
//! ```text
//!   sample (what was counted) --> rates (between two of them) --> table (sorted, as text)
//!                                     state (keys) --> screen (drawn) --> terminal
//! ```
//!
//! Everything but [`sample`] and [`terminal`] is arithmetic on values: no socket, no terminal, no clock. Where standard output is no
//! terminal, or on demand, the tables are printed one after the other instead, as `top -b` does.

mod rates;
mod sample;
mod screen;
mod state;
mod table;
mod terminal;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use self::rates::Rates;
use self::sample::Sampler;
use self::screen::Look;
use self::state::State;
use self::table::{Charset, Layout, Sort, View};
use self::terminal::Pace;
use crate::failure::{self, WrongInvocation};
use crate::output;
use crate::rpc::DEFAULT_SOCKET;

/// Arguments of `top`.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// The node's Unix socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    rpc_socket: PathBuf,

    /// Seconds between two looks, which figures are about
    #[arg(long, short = 'd', value_name = "SECONDS", default_value = "1", value_parser = interval)]
    interval: Duration,

    /// Print tables, one after the other; so it is, too, where standard output is no terminal
    #[arg(long, short)]
    batch: bool,

    /// End after so many intervals
    #[arg(long, short = 'n', value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    iterations: Option<u64>,

    /// What is shown first, or, printed, alone
    #[arg(long, value_name = "VIEW")]
    view: Option<View>,

    /// Sort by the column with this head: `iops`, `p99us`
    #[arg(long, value_name = "COLUMN", value_parser = sorted_by)]
    sort: Option<[Sort; View::ALL.len()]>,

    /// Reverse the order
    #[arg(long, short)]
    reverse: bool,

    /// Show only rows in which a name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
}

/// Seconds, between the finest that says something and less than a node leaves a silent connection.
fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.1..=300.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("from 0.1 to 300 seconds".to_owned())
    }
}

/// How each view is sorted, if those that have a column of this name are sorted by it.
fn sorted_by(name: &str) -> Result<[Sort; View::ALL.len()], String> {
    if View::ALL.iter().any(|view| view.sort_by(name).is_some()) {
        return Ok(View::ALL.map(|view| view.sort_by(name).unwrap_or_else(|| view.default_sort())));
    }
    let mut names: Vec<&str> = Vec::new();
    for column in View::ALL.iter().flat_map(|view| view.columns()) {
        if !names.contains(&column.name) {
            names.push(column.name);
        }
    }
    Err(format!("no column is called so; there are {}", names.join(", ")))
}

/// Shows or prints what the node does.
pub(crate) fn run(args: &TopArgs) -> anyhow::Result<()> {
    let mut sorts = args.sort.unwrap_or_else(|| View::ALL.map(View::default_sort));
    for sort in sorts.iter_mut().filter(|_| args.reverse) {
        sort.descending = !sort.descending;
    }
    let mut sampler = Sampler::new(args.rpc_socket.clone());
    // A node that is not there, or not ours, is said before anything is drawn.
    let first = sampler.take()?;
    let mut state = State::new(args.view.unwrap_or(View::Devices), sorts, args.filter.clone());
    state.sampled(Ok(first));
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let is_dumb = set("TERM").is_none_or(|term| term == "dumb");
    let charset = Charset::of_environment();
    let pace = Pace { interval: args.interval, iterations: args.iterations };
    if args.batch || !io::stdout().is_terminal() {
        let views = args.view.map_or_else(|| View::ALL.to_vec(), |view| vec![view]);
        return print(state, &views, charset, sampler, pace);
    }
    if is_dumb {
        let problem = "this terminal cannot move its cursor (TERM); use --batch";
        return Err(WrongInvocation(problem.to_owned()).into());
    }
    let title = format!(
        "tidegate top  {}  every {} s",
        args.rpc_socket.display(),
        args.interval.as_secs_f64()
    );
    let look = Look { title, charset, has_colour: set("NO_COLOR").is_none() };
    terminal::run(state, &look, sampler, pace)
}

/// Prints the tables of each interval, until there were enough or nobody reads on.
fn print(
    mut state: State,
    views: &[View],
    charset: Charset,
    mut sampler: Sampler,
    pace: Pace,
) -> anyhow::Result<()> {
    let (mut left, mut next) = (pace.iterations, Instant::now());
    while left != Some(0) {
        next = (next + pace.interval).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
        let text = match sampler.take() {
            Err(error) => {
                let line = failure::line(&error);
                state.sampled(Err(line.clone()));
                format!("{}\n\n", charset.shown(&line))
            }
            // The first after a failure has nothing to be compared with.
            Ok(sample) => match state.sampled(Ok(sample)) {
                None => continue,
                Some(rates) => page(&state, &rates, views, charset),
            },
        };
        if !output::write_on(text.as_bytes())? {
            return Ok(());
        }
        left = left.map(|left| left - 1);
    }
    Ok(())
}

/// The tables of one interval as text.
fn page(state: &State, rates: &Rates, views: &[View], charset: Charset) -> String {
    let mut text = table::summary(rates) + "\n\n";
    for view in views {
        let layout = Layout::new(&view.columns(), &state.rows(*view), charset);
        for line in layout.lines() {
            text.push_str(&line);
            text.push('\n');
        }
        text.push('\n');
    }
    text
}
