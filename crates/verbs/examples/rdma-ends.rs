//! Two ends on this machine's RDMA device: `rdma-ends ADDRESS:PORT`. Prints a line for each thing that works.

#[path = "../tests/support/conversation.rs"]
mod conversation;
#[path = "../tests/support/mishaps.rs"]
mod mishaps;
#[path = "../tests/support/mod.rs"]
mod support;

#[allow(clippy::print_stdout, clippy::expect_used, reason = "a program for tests")]
fn main() {
    let at = std::env::args().nth(1).expect("usage: rdma-ends ADDRESS:PORT");
    let at = at.parse().expect("an address and a port");
    let library = verbs::Library::open().unwrap_or_else(|error| {
        println!("not ok open: {error}");
        std::process::exit(1)
    });
    for device in library.devices().expect("devices") {
        println!("# {} {:?} {:?}", device.name(), device.attributes(), device.port(1));
        println!("# GIDs {:?}", (0..4).map(|index| device.gid(1, index)).collect::<Vec<_>>());
    }
    let driver = support::Driver(None);
    let mut say = |what: &str| println!("ok rdma-{what}");
    conversation::conversation(&driver, (&library, &library), at, &mut say);
    mishaps::mishaps(&driver, (&library, &library), at, &mut say);
}
