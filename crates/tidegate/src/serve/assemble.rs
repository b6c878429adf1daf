//! From the configuration file's process settings to what a node is made of.

use control::transports::Settings;
use memory::Hugepages;
use node::NodeConfig;
use reactor::{IdlePolicy, ReactorConfig, RingChoice};
use target::configuration::Limits;
use transport_tcp::{SuccessFlag, TcpConfig, Timeouts};

use crate::config::{self, Config, Idle, IoUring, Success};

/// The node's threads, memory and limits.
pub(super) fn node(config: &Config, cores: &[usize]) -> NodeConfig {
    let reactors = cores
        .iter()
        .map(|&core| ReactorConfig {
            core: Some(core),
            idle: idle(config.reactors.idle_on(core), config),
            ring: match config.reactors.io_uring {
                IoUring::Auto => RingChoice::default(),
                IoUring::Never => RingChoice::Forbidden,
            },
            ..ReactorConfig::default()
        })
        .collect();
    let tcp = &config.transports.tcp;
    NodeConfig {
        reactors,
        memory_per_reactor: usize::try_from(config.memory.per_reactor.get_ref().0)
            .unwrap_or(usize::MAX),
        hugepages: match config.memory.hugepages {
            config::Hugepages::Try => Hugepages::Try,
            config::Hugepages::Never => Hugepages::Never,
        },
        tcp: TcpConfig {
            in_capsule_data: tcp.in_capsule_data.get_ref().narrow(),
            success_flag: match tcp.c2h_success {
                Success::On => SuccessFlag::Always,
                Success::Strict => SuccessFlag::Strict,
                Success::Off => SuccessFlag::Never,
            },
            timeouts: Timeouts {
                negotiation: tcp.connect_timeout.get_ref().0,
                pdu: tcp.receive_timeout.get_ref().0,
                data: tcp.receive_timeout.get_ref().0,
                send: tcp.send_timeout.get_ref().0,
                ..Timeouts::default()
            },
            ..TcpConfig::default()
        },
        limits: target::ShardLimits {
            connect_timeout: tcp.connect_timeout.get_ref().0,
            ..target::ShardLimits::default()
        },
    }
}

fn idle(idle: Idle, config: &Config) -> IdlePolicy {
    match (idle, config.reactors.max_spin) {
        (Idle::Poll, _) => IdlePolicy::Poll,
        (Idle::Interrupt, _) => IdlePolicy::Interrupt,
        (Idle::Adaptive, Some(max_spin)) => IdlePolicy::Adaptive { max_spin: max_spin.0 },
        (Idle::Adaptive, None) => IdlePolicy::default(),
    }
}

/// What no client exceeds.
pub(super) fn settings(config: &Config) -> Settings {
    Settings { limits: limits(config), rdma: config.transports.rdma.to_settings() }
}

fn limits(config: &Config) -> Limits {
    let tcp = &config.transports.tcp;
    Limits {
        io_queues: *tcp.max_io_queues.get_ref(),
        queue_depth: *tcp.queue_depth.get_ref(),
        max_transfer: tcp.max_transfer.get_ref().narrow(),
        in_capsule: tcp.in_capsule_data.get_ref().narrow(),
        ..Limits::default()
    }
}
