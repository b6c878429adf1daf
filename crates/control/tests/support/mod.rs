//! What tests of a whole plane have in common.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)]

use std::future::Future;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use control::jsonrpc::{Methods as _, RpcError};
use control::logs::{Level, Log, Logs};
use control::methods::Methods;
use control::plane::Plane;
use host::HostIdentity;
use memory::Hugepages;
use node::{Node, NodeConfig};
use reactor::{IdlePolicy, ReactorConfig};
use serde_json::Value;
use target::ShardLimits;
use tracing::level_filters::LevelFilter;
use transport_tcp::TcpConfig;

/// Far longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Silence;

impl Log for Silence {
    fn show(&self, _: LevelFilter, _: &[&'static str]) {}
}

pub(crate) fn logs() -> Logs {
    Logs::new(Box::new(Silence), Level::Info)
}

/// One with two reactors.
pub(crate) fn node() -> Node {
    let reactor = ReactorConfig { idle: IdlePolicy::Interrupt, ..ReactorConfig::default() };
    let node = Node::start(NodeConfig {
        reactors: vec![reactor; 2],
        memory_per_reactor: 32 << 20,
        hugepages: Hugepages::Never,
        tcp: TcpConfig::default(),
        limits: ShardLimits::default(),
    });
    node.unwrap()
}

/// The host that connects.
pub(crate) fn identity() -> HostIdentity {
    let host = HostIdentity::resolve(
        Some("nqn.2026-11.io.tidegate:host".parse().unwrap()),
        Some("0d8c5f8e-91c3-4f3e-8f0a-2f1a5a3a9c11".parse().unwrap()),
    );
    host.unwrap()
}

pub(crate) async fn try_call(
    plane: &Arc<Plane>,
    method: &str,
    params: Value,
) -> Result<Value, RpcError> {
    Methods::new(Arc::clone(plane)).call(method, params).await
}

pub(crate) async fn call(plane: &Arc<Plane>, method: &str, params: Value) -> Value {
    let answer = try_call(plane, method, params).await;
    answer.unwrap_or_else(|error| panic!("{method}: {error:?}"))
}

pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::task::yield_now().await;
        }
    };
    within(what, wait).await;
}

pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what}"))
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
