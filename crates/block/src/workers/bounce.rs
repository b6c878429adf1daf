//! Memory of a job's own, aligned as direct I/O wants it.

use memory::Segment;

/// The alignment of a job's memory, enough for every medium that is accepted.
const ALIGNMENT: usize = 4096;

/// Memory of a job's own.
#[derive(Debug)]
pub(crate) struct Bounce {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Bounce {
    pub(crate) fn zeroed(len: usize) -> Bounce {
        let bytes = vec![0; len.saturating_add(ALIGNMENT)];
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Bounce { bytes, start, len }
    }

    /// The segments' bytes, in order.
    pub(crate) fn gather<'a>(segments: impl Iterator<Item = &'a Segment> + Clone) -> Bounce {
        let mut bounce = Bounce::zeroed(segments.clone().map(Segment::len).sum());
        let mut rest = bounce.as_mut();
        for segment in segments {
            let (part, behind) = rest.split_at_mut(segment.len().min(rest.len()));
            segment.copy_to(0, part);
            rest = behind;
        }
        bounce
    }

    /// Copies the bytes into the segments; whether all of them found their place.
    pub(crate) fn scatter<'a>(&self, segments: impl Iterator<Item = &'a Segment>) -> bool {
        let mut rest = self.as_ref();
        for segment in segments {
            let (part, behind) = rest.split_at(segment.len().min(rest.len()));
            if segment.copy_from(0, part) != segment.len() {
                return false;
            }
            rest = behind;
        }
        rest.is_empty()
    }
}

impl AsRef<[u8]> for Bounce {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(self.start..self.start + self.len).unwrap_or_default()
    }
}

impl AsMut<[u8]> for Bounce {
    fn as_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.start + self.len).unwrap_or_default()
    }
}
