//! What happened, as a hash always and as text on demand.

/// The events of one run. Formatting is paid for only when somebody is going to read it.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    events: u64,
    printing: bool,
}

impl Trace {
    /// An empty one; `printing`: every event goes to standard error as it happens.
    pub fn new(printing: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, events: 0, printing }
    }

    /// Notes an event: `facts` enter the hash, `text` is what a person reads.
    pub fn note(&mut self, now: u64, facts: &[u64], text: impl FnOnce() -> String) {
        self.events += 1;
        for fact in std::iter::once(&now).chain(facts) {
            self.hash = (self.hash ^ fact).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
        }
        if self.printing {
            eprintln!("{:>7}.{:03} us  {}", now / 1000, now % 1000, text());
        }
    }

    /// The same for the same events.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many there were.
    pub fn events(&self) -> u64 {
        self.events
    }
}
