//! MSI-X vectors, as eventfds.

use std::os::fd::OwnedFd;

/// A vector.
#[derive(Debug, Default)]
struct Vector {
    fd: Option<OwnedFd>,
    masked: bool,
    pending: bool,
}

/// All vectors.
#[derive(Debug, Default)]
pub(super) struct Interrupts(Vec<Vector>);

impl Interrupts {
    pub(super) fn new(vectors: u16) -> Interrupts {
        Interrupts((0..vectors).map(|_| Vector::default()).collect())
    }

    /// Vectors there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// As when nobody has the function.
    pub(super) fn disconnect(&mut self) {
        self.0.iter_mut().for_each(|vector| *vector = Vector::default());
    }

    /// As after a reset of the function: what it is connected to stays, what is pending does not.
    pub(super) fn reset(&mut self) {
        self.0.iter_mut().for_each(|vector| vector.pending = false);
    }

    /// From now on these are signalled; false if there are more of them than vectors.
    pub(super) fn connect(&mut self, fds: Vec<OwnedFd>) -> bool {
        if fds.len() > self.0.len() {
            return false;
        }
        let mut fds = fds.into_iter();
        self.0.iter_mut().for_each(|vector| vector.fd = fds.next());
        true
    }

    pub(super) fn set_mask(&mut self, vector: u16, masked: bool) -> bool {
        let vector = self.0.get_mut(usize::from(vector));
        vector.map(|vector| vector.masked = masked).is_some()
    }

    /// A completion was posted that this vector is to tell of.
    pub(super) fn raise(&mut self, vector: u16) {
        if let Some(vector) = self.0.get_mut(usize::from(vector)) {
            vector.pending = true;
        }
    }

    /// Vectors that could interrupt now.
    pub(super) fn due(&self) -> impl Iterator<Item = u16> + '_ {
        let due = |vector: &Vector| vector.pending && !vector.masked;
        (0..).zip(&self.0).filter(move |(_, vector)| due(vector)).map(|(number, _)| number)
    }

    /// A vector interrupts, unless that is lost; whether somebody was told.
    pub(super) fn signal(&mut self, vector: u16, lost: bool) -> bool {
        let Some(vector) = self.0.get_mut(usize::from(vector)) else { return false };
        vector.pending = false;
        let Some(fd) = vector.fd.as_ref().filter(|_| !lost) else { return false };
        // An eventfd that is full is readable already.
        let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
        true
    }
}
