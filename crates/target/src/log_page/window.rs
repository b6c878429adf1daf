//! The part of a log page that a host asked for.
//!
//! A page is produced by putting its pieces where they belong in the whole; only what falls into the window
//! is copied. So a page of a megabyte read 4 KiB at a time is never built, and no page needs code for
//! offsets of its own.

/// A stretch of a log page, being filled.
#[derive(Debug)]
pub struct Window<'a> {
    offset: u64,
    bytes: &'a mut [u8],
}

impl<'a> Window<'a> {
    /// The window that begins `offset` bytes into the page. All zero at first: so is what lies beyond a
    /// page's end.
    pub fn new(offset: u64, bytes: &'a mut [u8]) -> Self {
        bytes.fill(0);
        Self { offset, bytes }
    }

    /// Where the window begins in the page.
    pub fn start(&self) -> u64 {
        self.offset
    }

    /// Where it ends.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.bytes.len() as u64)
    }

    /// Puts `piece` at position `at` of the page, as far as the window shows it.
    pub fn put(&mut self, at: u64, piece: &[u8]) {
        let (skip_piece, skip_window) = match self.offset.checked_sub(at) {
            Some(skip) => (skip, 0),
            None => (0, at - self.offset),
        };
        // A distance that does not fit the address space is beyond any slice.
        let from = usize::try_from(skip_piece).ok().and_then(|skip| piece.get(skip..));
        let to = usize::try_from(skip_window).ok().and_then(|skip| self.bytes.get_mut(skip..));
        if let (Some(from), Some(to)) = (from, to) {
            for (to, from) in to.iter_mut().zip(from) {
                *to = *from;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_window_shows_what_the_whole_page_would(
            pieces in prop::collection::vec(
                (0_u64..96, prop::collection::vec(1_u8.., 0..32)), 0..6
            ),
            offset in 0_u64..128,
            length in 0_usize..64,
        ) {
            let mut whole = [0_u8; 256];
            for (at, piece) in &pieces {
                let at = usize::try_from(*at).unwrap();
                whole[at..at + piece.len()].copy_from_slice(piece);
            }
            let mut bytes = vec![0xaa; length];
            let mut window = Window::new(offset, &mut bytes);
            prop_assert_eq!(window.end() - window.start(), length as u64);
            for (at, piece) in &pieces {
                window.put(*at, piece);
            }
            let from = usize::try_from(offset).unwrap();
            prop_assert_eq!(&bytes, &whole[from..from + length]);
        }

        #[test]
        fn far_positions_do_no_harm(at: u64, offset: u64) {
            let mut bytes = [0_u8; 8];
            let mut window = Window::new(offset, &mut bytes);
            window.put(at, &[1; 8]);
            let seen: u64 = bytes.into_iter().map(u64::from).sum();
            prop_assert_eq!(seen, 8_u64.saturating_sub(at.abs_diff(offset)));
        }
    }
}
