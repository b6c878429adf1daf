//! Draws the [`State`].
//!
//! ASCII alone, but for names that come from the node; colours only where the user wants any (`NO_COLOR`), and none
//! of them says anything that is not said in words as well.

use std::fmt::Write as _;

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Paragraph};

use super::state::State;
use super::table::{Charset, GAP, Layout, View, summary};

/// What is drawn beside the state, and does not change.
#[derive(Debug)]
pub(super) struct Look {
    /// Which node, and how often.
    pub(super) title: String,
    pub(super) charset: Charset,
    pub(super) has_colour: bool,
}

/// Less than this says nothing.
const SMALLEST: (u16, u16) = (40, 8);

const KEYS: &str = "1 2 3 Tab view  < > sort  r reverse  / filter  Space pause  ? help  q quit";

const HELP: &[&str] = &[
    "1, 2, 3        reactors, devices, controllers",
    "Tab, Shift-Tab the next view, the one before",
    "<, >           sort by the column to the left, to the right",
    "r              reverse the order",
    "/              show only rows in which a name contains what is typed;",
    "               Enter keeps it, Esc shows all rows again",
    "Space          hold the figures; again: go on",
    "Left, Right, Up, Down, Page Up, Page Down, Home, End",
    "               scroll",
    "q, Esc, Ctrl-C quit",
    "",
    "Latencies are those of the device, in microseconds, of what ended in",
    "the interval. DEPTH is the mean number of operations in the device,",
    "INSIDE the number of those in it now, which may hang.",
    "",
    "Any key goes back.",
];

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State, look: &Look) {
    let area = frame.area();
    frame.render_widget(Clear, area);
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        let text = format!("too small: {} x {} at least", SMALLEST.0, SMALLEST.1);
        frame.render_widget(Paragraph::new(text), area);
        return;
    }
    let [top, body, bottom] = [
        Rect { height: 3, ..area },
        Rect { y: area.y + 4, height: area.height - 5, ..area },
        Rect { y: area.bottom() - 1, height: 1, ..area },
    ];
    frame.render_widget(Paragraph::new(look.head(state)), top);
    let lines = if state.is_helping {
        HELP.iter().map(|line| Line::raw(*line)).collect()
    } else {
        look.body(state, body.height.into())
    };
    frame.render_widget(Paragraph::new(lines), body);
    let keys = if state.is_typing { "Enter: keep the filter  Esc: show all" } else { KEYS };
    frame.render_widget(Paragraph::new(keys).style(Modifier::DIM), bottom);
}

impl Look {
    /// Something that is not to be missed.
    fn striking(&self, colour: Color) -> Style {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        if self.has_colour { bold.fg(colour) } else { bold }
    }

    /// Which node; what it does in all, or why that is not known; what is shown of it.
    fn head(&self, state: &State) -> Vec<Line<'static>> {
        let mut title = vec![Span::styled(self.charset.shown(&self.title), Modifier::BOLD)];
        if state.is_paused {
            title.push(Span::styled("  PAUSED", self.striking(Color::Yellow)));
        }
        let bad = self.striking(Color::Red);
        let news = match (&state.trouble, state.silence, &state.rates) {
            (Some(trouble), _, _) => Line::styled(self.charset.shown(trouble), bad),
            (None, Some(silence), _) => {
                Line::styled(format!("no answer for {} s", silence.as_secs()), bad)
            }
            (None, None, Some(rates)) => Line::raw(summary(rates)),
            (None, None, None) => Line::raw("waiting for the first figures"),
        };
        let mut views = Vec::new();
        for (at, view) in View::ALL.into_iter().enumerate() {
            let style = if view == state.view { Modifier::REVERSED } else { Modifier::empty() };
            views.push(Span::styled(format!(" {} {} ", at + 1, view.name()), style));
            views.push(Span::raw(" "));
        }
        let mut how = String::new();
        // First what one has to see while typing. Writing to a String cannot fail.
        if state.is_typing || !state.filter.is_empty() {
            let cursor = if state.is_typing { "_" } else { "" };
            let _ = write!(how, " filter: {}{cursor} ", self.charset.shown(&state.filter));
        }
        let sort = state.sort(state.view);
        let columns = state.view.columns();
        let by = columns.get(sort.column).map_or("", |it| it.name);
        let way = if sort.descending { "falling" } else { "rising" };
        let _ = write!(how, " by {by}, {way}");
        views.push(Span::raw(how));
        vec![Line::from(title), news, Line::from(views)]
    }

    /// All three tables where there is room for them, else the one that is looked at.
    fn body(&self, state: &State, height: usize) -> Vec<Line<'static>> {
        if state.rates.is_none() {
            return Vec::new();
        }
        let tables = View::ALL.map(|view| self.table(state, view));
        let all: Vec<_> = tables.join(&Line::default());
        if all.len() <= height {
            return all;
        }
        let [mut head, mut rows] = [Vec::new(), Vec::new()];
        if let Some(table) = tables.into_iter().nth(state.view as usize) {
            let mut lines = table.into_iter();
            head.extend(lines.next());
            rows.extend(lines);
        }
        let room = height.saturating_sub(head.len());
        let offset = state.offset.min(rows.len().saturating_sub(room));
        head.extend(rows.into_iter().skip(offset).take(room));
        head
    }

    /// The heads, with the one that is sorted by set apart, and the rows.
    fn table(&self, state: &State, view: View) -> Vec<Line<'static>> {
        let (columns, rows) = (view.columns(), state.rows(view));
        let layout = Layout::new(&columns, &rows, self.charset);
        let is_chosen = view == state.view;
        let skipped = if is_chosen { state.skipped } else { 0 };
        let is_seen = |at: &usize| *at == 0 || *at > skipped;
        let style = if is_chosen { Modifier::REVERSED } else { Modifier::UNDERLINED };
        let mut heads = Vec::new();
        for (at, head) in layout.heads.iter().enumerate().filter(|(at, _)| is_seen(at)) {
            let is_sorted_by = is_chosen && at == state.sort(view).column;
            let sorted = if is_sorted_by { Modifier::BOLD | Modifier::UNDERLINED } else { style };
            heads.push(Span::styled(head.clone(), sorted));
            heads.push(Span::styled(GAP, style));
        }
        let mut lines = vec![Line::from(heads)];
        if layout.rows.is_empty() {
            lines.push(Line::styled("none", Modifier::DIM));
        }
        lines.extend(layout.rows.iter().map(|row| {
            let cells = row.iter().enumerate().filter(|(at, _)| is_seen(at));
            let cells: Vec<&str> = cells.map(|(_, cell)| cell.as_str()).collect();
            Line::raw(cells.join(GAP))
        }));
        lines
    }
}

#[cfg(test)]
mod tests;
