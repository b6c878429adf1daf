//! The software provider: it does what reliable-connected queue pairs do, and the layer above it, too.

#[path = "../support/conversation.rs"]
mod conversation;
#[path = "../support/mishaps.rs"]
mod mishaps;
#[path = "../support/mod.rs"]
mod support;

mod connecting;
mod domains;
mod faults;
mod media;
mod transfer;

#[test]
fn two_ends_converse_under_every_order_of_events() {
    for seed in 0..200 {
        let (fabric, host, target) = support::software(seed);
        let driver = support::Driver(Some(fabric.clone()));
        let at = support::TARGET.parse().unwrap();
        conversation::conversation(&driver, (&host, &target), at, &mut |_| ());
        mishaps::mishaps(&driver, (&host, &target), at, &mut |_| ());
        assert_eq!(fabric.census(), [0; 6], "seed {seed}: something was not destroyed");
        assert_eq!(fabric.refusals(), 0, "seed {seed}: something was destroyed too early");
    }
}
