//! A snapshot in the words of Prometheus: base units, counters that only grow, labels for what there are several of.
//!
//! The histogram of a class of operations is served once there has been one; until then a thousand devices would fill
//! megabytes with noughts.

use std::fmt::Error;

use nvme::nqn::DISCOVERY_NQN;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, EncodeMetric, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use target::rate_limit::{Limit, Way};
use target::shard::report::ControllerReport;
use target::statistics::{Class, ClassSnapshot, ERRORS};
use transport_rdma::{CounterValues, DeviceReport, PortReport};

use super::snapshot::{Device, Snapshot};
use super::tables;

/// log2 of the nanoseconds at which the histograms' buckets end: 4.096 µs to 8.6 s, each twice the one before.
const BORDERS: std::ops::RangeInclusive<u32> = 12..=33;

/// The labels of what there is one of.
const NONE: [(&str, &str); 0] = [];

/// Nanoseconds as seconds. Exact up to a hundred days, and to a millionth of a second beyond.
#[allow(clippy::cast_precision_loss)]
fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// Writes whole families.
struct Page<'e>(DescriptorEncoder<'e>);

impl Page<'_> {
    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, u64)>,
    ) -> Result<(), Error> {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn seconds<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        nanos: impl IntoIterator<Item = (L, u64)>,
    ) -> Result<(), Error> {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, nanos) in nanos {
            ConstCounter::new(seconds(nanos)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, u64)>,
    ) -> Result<(), Error> {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            gauge(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn gauge<V: EncodeGaugeValue>(value: V) -> ConstGauge<V> {
    ConstGauge::new(value)
}

/// Labels of things that are known by their number.
fn numbered<'a, T>(
    label: &'static str,
    things: &'a [T],
    read: impl Fn(&T) -> u64 + 'a,
) -> impl Iterator<Item = ([(&'static str, String); 1], u64)> + 'a {
    let things = things.iter().enumerate();
    things.map(move |(number, it)| ([(label, number.to_string())], read(it)))
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut page = Page(encoder);
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        page.gauges("build_info", "The version that runs", [(version, 1)])?;
        self.encode_reactors(&mut page)?;
        self.encode_tcp(&mut page)?;
        self.encode_rdma(&mut page)?;
        self.encode_controllers(&mut page)?;
        self.encode_devices(&mut page)?;
        self.encode_latencies(&mut page)
    }
}

impl Snapshot {
    fn encode_reactors(&self, page: &mut Page<'_>) -> Result<(), Error> {
        for (name, help, read) in tables::REACTOR_TIMES {
            page.seconds(name, help, numbered("reactor", &self.reactors, |it| read(&it.counters)))?;
        }
        for (name, help, read) in tables::REACTOR_COUNTERS {
            page.counters(
                name,
                help,
                numbered("reactor", &self.reactors, |it| read(&it.counters)),
            )?;
        }
        for (name, help, read) in tables::SHARD_GAUGES {
            page.gauges(name, help, numbered("reactor", &self.shards, *read))?;
        }
        for (name, help, read) in tables::SHARD_COUNTERS {
            page.counters(name, help, numbered("reactor", &self.shards, *read))?;
        }
        Ok(())
    }

    fn encode_tcp(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let help = "NVMe/TCP connections being served";
        page.gauges("tcp_connections", help, [(NONE, self.tcp_connections)])?;
        let help = "Counted by the NVMe/TCP transport";
        let named = |at: &(&'static str, u64)| tables::tcp(at.0).0;
        for family in self.tcp.chunk_by(|one, other| named(one) == named(other)) {
            let Some(name) = family.first().map(named) else { continue };
            let labels = |at: &(&'static str, u64)| tables::tcp(at.0).1.into_iter().collect();
            let values = family.iter().map(|it| (labels(it), it.1));
            page.counters::<Vec<(&str, &str)>>(&name, help, values)?;
        }
        Ok(())
    }

    fn encode_rdma(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let rdma = self.rdma.as_ref();
        let connections = rdma.map(|rdma| (NONE, rdma.connections));
        page.gauges("rdma_connections", "NVMe/RDMA connections being served", connections)?;
        let counted = || rdma.into_iter().flat_map(|rdma| &rdma.counted);
        for (at, (name, _)) in CounterValues::default().iter().enumerate() {
            let values = counted().map(|it| {
                let labels = [("device", it.device.clone()), ("reactor", it.reactor.to_string())];
                (labels, it.values.iter().nth(at).map_or(0, |(_, value)| value))
            });
            page.counters(&tables::rdma(name), "Counted by the NVMe/RDMA transport", values)?;
        }
        let devices = || rdma.into_iter().flat_map(|rdma| &rdma.devices);
        let of = |device: &DeviceReport| [("device", device.name.clone())];
        let up = devices().map(|it| (of(it), u64::from(!it.removed)));
        page.gauges("rdma_device_up", "1: there; 0: removed", up)?;
        let pairs = devices().map(|it| (of(it), u64::try_from(it.queue_pairs).unwrap_or(u64::MAX)));
        page.gauges("rdma_queue_pairs", "Queue pairs", pairs)?;
        let ports = |read: fn(&PortReport) -> u64| {
            devices().flat_map(move |device| {
                device.ports.iter().map(move |port| {
                    let number = port.number.to_string();
                    ([("device", device.name.clone()), ("port", number)], read(port))
                })
            })
        };
        let help = "1: carries traffic; 0: does not";
        page.gauges("rdma_port_up", help, ports(|it| it.active.into()))?;
        page.gauges("rdma_port_mtu_bytes", "MTU", ports(|it| it.mtu.into()))?;
        let hardware = rdma.into_iter().flat_map(|rdma| &rdma.hardware).map(|it| {
            let labels = [
                ("device", it.device.clone()),
                ("port", it.port.to_string()),
                ("counter", it.counter.clone()),
            ];
            (labels, it.value)
        });
        page.counters("rdma_hardware", "Counted by the kernel's driver of the device", hardware)
    }

    fn encode_controllers(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let labels = |it: &ControllerReport| {
            let subsystem = it.subsystem.as_ref().map_or(DISCOVERY_NQN, |it| it.as_str());
            [
                ("subsystem", subsystem.to_owned()),
                ("host", it.host.to_string()),
                ("controller", it.cntlid.to_string()),
            ]
        };
        let of = |read: fn(&ControllerReport) -> u64| {
            self.controllers.iter().map(move |it| (labels(it), read(it)))
        };
        for (name, help, read) in tables::CONTROLLER_GAUGES {
            page.gauges(name, help, of(*read))?;
        }
        for (name, help, read) in tables::CONTROLLER_COUNTERS {
            page.counters(name, help, of(*read))?;
        }
        Ok(())
    }

    /// The classes of each device that have had an operation.
    fn classes(&self) -> impl Iterator<Item = ([(&'static str, &str); 2], &ClassSnapshot)> {
        let of = |device: &Device| {
            Class::ALL.map(|class| (class, device.counted.class(class).operations()))
        };
        self.devices.iter().flat_map(move |device| {
            let used = of(device).into_iter().filter(|(_, operations)| *operations > 0);
            used.map(|(class, _)| {
                let labels = [("device", device.name.as_str()), ("operation", class.name())];
                (labels, device.counted.class(class))
            })
        })
    }

    fn encode_devices(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let devices = || self.devices.iter().map(|it| ([("device", it.name.as_str())], it));
        page.gauges(
            "device_up",
            "1: open; 0: waited for",
            devices().map(|(labels, it)| (labels, u64::from(it.size.is_some()))),
        )?;
        page.gauges(
            "device_size_bytes",
            "Size",
            devices().filter_map(|(labels, it)| Some((labels, it.size?))),
        )?;
        page.gauges(
            "device_operations_in_flight",
            "Operations that are in it",
            devices().map(|(labels, it)| (labels, it.counted.in_flight())),
        )?;
        let namespaces = self.namespaces.iter().map(|it| {
            let labels = [
                ("subsystem", it.subsystem.clone()),
                ("nsid", it.nsid.to_string()),
                ("device", it.device.clone()),
            ];
            (labels, 1)
        });
        page.gauges("namespace_info", "A device is a namespace of a subsystem", namespaces)?;
        let operations = self.classes().map(|(labels, it)| (labels, it.operations()));
        page.counters("device_operations", "Operations that succeeded", operations)?;
        let bytes = self.classes().map(|(labels, it)| (labels, it.bytes));
        page.counters("device_bytes", "Bytes that they were about", bytes)?;
        let errors = self.devices.iter().flat_map(|device| {
            ERRORS.into_iter().zip(device.counted.errors).map(|((_, error), count)| {
                ([("device", device.name.as_str()), ("error", error)], count)
            })
        });
        page.counters("device_errors", "Operations that failed", errors)?;
        self.encode_limits(page)
    }

    /// The limits of each device that has any, and what they have done.
    fn encode_limits(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let limits = |of_bytes: bool| {
            self.devices.iter().flat_map(move |device| {
                let limits = Limit::ALL.into_iter().zip(device.limits);
                let limits = limits.filter(move |(limit, _)| limit.is_of_bytes() == of_bytes);
                limits.filter(|(_, rate)| *rate > 0).map(|(limit, rate)| {
                    let way = match limit.way() {
                        Some(Way::Read) => "read",
                        Some(Way::Write) => "write",
                        None => "both",
                    };
                    ([("device", device.name.as_str()), ("way", way)], rate)
                })
            })
        };
        page.gauges("device_limit_ios_per_second", "I/Os that it may do", limits(false))?;
        page.gauges("device_limit_bytes_per_second", "Bytes that it may move", limits(true))?;
        let held = |read: fn(&Device) -> u64| {
            self.devices.iter().map(move |it| ([("device", it.name.as_str())], read(it)))
        };
        let help = "Commands that its limits held back";
        page.counters("device_held_back_commands", help, held(|it| it.counted.held_back))?;
        let help = "How long they were held back, all together";
        page.seconds("device_held_back_seconds", help, held(|it| it.counted.held_back_nanos))
    }

    fn encode_latencies(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let (name, help) = ("device_latency_seconds", "Time from submission to completion");
        let mut family = page.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, it) in self.classes() {
            let mut below = 0;
            let mut buckets = Vec::new();
            for border in BORDERS.map(|power| 1 << power) {
                let count = it.below(border);
                buckets.push((seconds(border), count.saturating_sub(below)));
                below = count;
            }
            let operations = it.operations();
            buckets.push((f64::INFINITY, operations.saturating_sub(below)));
            let mut encoder = family.encode_family(&labels)?;
            let sum = seconds(it.nanos);
            encoder.encode_histogram::<NoLabelSet>(sum, operations, &buckets, None)?;
        }
        Ok(())
    }
}
