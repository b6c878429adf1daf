//! What the live view shows, as samples come in and keys are pressed. No terminal and no clock: [`super::screen`] draws it,
//! [`super::terminal`] drives it.
//!
//! A failure ends what there is to compare with: the next sample may be of another process, whose counters began
//! anew, so rates are shown again with the one after it. What was shown last stays, beside the trouble.

use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::rates::Rates;
use super::sample::Sample;
use super::table::{Cell, Sort, View, rows};

/// What is to happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    GoOn,
    Quit,
}

/// The view.
#[derive(Debug)]
pub(super) struct State {
    pub(super) view: View,
    /// Of each view, in the order of [`View::ALL`].
    sorts: [Sort; View::ALL.len()],
    pub(super) filter: String,
    /// The filter is being typed.
    pub(super) is_typing: bool,
    pub(super) is_paused: bool,
    pub(super) is_helping: bool,
    /// Rows above the first one that is shown.
    pub(super) offset: usize,
    /// Columns between the first and the next that is shown.
    pub(super) skipped: usize,
    earlier: Option<Sample>,
    /// What is shown.
    pub(super) rates: Option<Rates>,
    /// Why there is nothing new.
    pub(super) trouble: Option<String>,
    /// How long the node has not answered, if that is too long.
    pub(super) silence: Option<Duration>,
}

impl State {
    /// Nothing is known yet.
    pub(super) fn new(view: View, sorts: [Sort; View::ALL.len()], filter: String) -> Self {
        Self {
            view,
            sorts,
            filter,
            is_typing: false,
            is_paused: false,
            is_helping: false,
            offset: 0,
            skipped: 0,
            earlier: None,
            rates: None,
            trouble: None,
            silence: None,
        }
    }

    /// A sample has been taken, or could not be; the rates since the one before.
    pub(super) fn sampled(&mut self, sample: Result<Sample, String>) -> Option<Rates> {
        self.silence = None;
        let now = match sample {
            Ok(now) => now,
            Err(trouble) => {
                self.trouble = Some(trouble);
                self.earlier = None;
                return None;
            }
        };
        self.trouble = None;
        let rates = self.earlier.as_ref().and_then(|earlier| Rates::between(earlier, &now));
        self.earlier = Some(now);
        if let Some(rates) = &rates
            && !self.is_paused
        {
            self.rates = Some(rates.clone());
        }
        rates
    }

    /// How a view is sorted.
    pub(super) fn sort(&self, view: View) -> Sort {
        self.sorts.get(view as usize).copied().unwrap_or_else(|| view.default_sort())
    }

    /// The rows of a view as they are to be shown.
    pub(super) fn rows(&self, view: View) -> Vec<Vec<Cell>> {
        let rates = self.rates.as_ref();
        rates.map_or_else(Vec::new, |rates| rows(view, rates, self.sort(view), &self.filter))
    }

    /// A key was pressed.
    pub(super) fn key(&mut self, key: KeyEvent) -> Next {
        if key.kind == KeyEventKind::Release {
            return Next::GoOn;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Next::Quit } else { Next::GoOn };
        }
        if self.is_typing {
            self.typed(key.code);
            return Next::GoOn;
        }
        if self.is_helping {
            // Any key closes it.
            self.is_helping = false;
            return Next::GoOn;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Next::Quit,
            KeyCode::Char('1') => self.show(View::Reactors),
            KeyCode::Char('2') => self.show(View::Devices),
            KeyCode::Char('3') => self.show(View::Controllers),
            KeyCode::Tab => self.turn(1),
            KeyCode::BackTab => self.turn(View::ALL.len() - 1),
            KeyCode::Char('>') => self.sort_further(1),
            KeyCode::Char('<') => {
                let columns = self.view.columns().len();
                self.sort_further(columns.saturating_sub(1));
            }
            KeyCode::Char('r') => {
                let sort = self.sort(self.view);
                self.set_sort(Sort { descending: !sort.descending, ..sort });
            }
            KeyCode::Char('/') => {
                self.filter.clear();
                self.is_typing = true;
            }
            KeyCode::Char(' ') => self.is_paused = !self.is_paused,
            KeyCode::Char('?' | 'h') => self.is_helping = true,
            KeyCode::Left => self.skipped = self.skipped.saturating_sub(1),
            KeyCode::Right => {
                let most = self.view.columns().len().saturating_sub(2);
                self.skipped = self.skipped.saturating_add(1).min(most);
            }
            KeyCode::Up => self.scroll(|offset| offset.saturating_sub(1)),
            KeyCode::Down => self.scroll(|offset| offset.saturating_add(1)),
            KeyCode::PageUp => self.scroll(|offset| offset.saturating_sub(10)),
            KeyCode::PageDown => self.scroll(|offset| offset.saturating_add(10)),
            KeyCode::Home => self.offset = 0,
            KeyCode::End => self.scroll(|_| usize::MAX),
            _ => {}
        }
        Next::GoOn
    }

    /// A key was pressed while the filter is being typed.
    fn typed(&mut self, key: KeyCode) {
        self.offset = 0;
        match key {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.filter.clear();
                self.is_typing = false;
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(c) => self.filter.push(c),
            _ => {}
        }
    }

    fn show(&mut self, view: View) {
        self.view = view;
        (self.offset, self.skipped) = (0, 0);
    }

    /// The view so many further on.
    fn turn(&mut self, by: usize) {
        let views = View::ALL.iter().cycle().skip_while(|it| **it != self.view);
        if let Some(view) = views.skip(1).nth(by - 1) {
            self.show(*view);
        }
    }

    fn set_sort(&mut self, to: Sort) {
        if let Some(sort) = self.sorts.get_mut(self.view as usize) {
            *sort = to;
        }
    }

    /// Sorts by the column so many further on, with that column's own direction.
    fn sort_further(&mut self, by: usize) {
        let columns = self.view.columns();
        let column = (self.sort(self.view).column + by) % columns.len();
        let descending = columns.get(column).is_some_and(|it| it.kind.is_descending());
        self.set_sort(Sort { column, descending });
    }

    /// Never so far that nothing is left.
    fn scroll(&mut self, to: impl Fn(usize) -> usize) {
        let last = self.rows(self.view).len().saturating_sub(1);
        self.offset = to(self.offset).min(last);
    }
}

#[cfg(test)]
pub(super) mod tests;
