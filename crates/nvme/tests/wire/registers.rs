//! Properties of the controller.

use nvme::fabrics::PropertySize;
use nvme::register::{
    Capabilities, Configuration, ControllerStatus, Property, ReadyTimeouts, ShutdownNotification,
    ShutdownStatus, Version,
};
use proptest::prelude::*;

#[test]
fn offsets_and_sizes() {
    let expected = [
        (Property::Capabilities, 0x00, 8),
        (Property::Version, 0x08, 4),
        (Property::Configuration, 0x14, 4),
        (Property::Status, 0x1c, 4),
        (Property::SubsystemReset, 0x20, 4),
        (Property::ReadyTimeouts, 0x68, 4),
    ];
    for (property, offset, size) in expected {
        assert_eq!(property.offset(), offset);
        assert_eq!(property.size().bytes(), size);
        assert_eq!(Property::from_offset(offset), Some(property));
    }
    assert_eq!(Property::from_offset(0x04), None);
    assert_eq!(Property::Capabilities.size(), PropertySize::Eight);
}

#[test]
fn capabilities_bits() {
    let cap = Capabilities {
        mqes: 127,
        cqr: true,
        ams: 0,
        to: 30,
        dstrd: 0,
        nssrs: false,
        css: Capabilities::CSS_NVM | Capabilities::CSS_IO_COMMAND_SETS,
        mpsmin: 0,
        mpsmax: 0,
        crms: 1,
    };
    // MQES 7Fh; CQR bit 16; TO 1Eh in 31:24; CSS bits 37 and 43; CRWMS bit 59.
    assert_eq!(cap.bits(), 0x0800_0820_1e01_007f);
    assert_eq!(Capabilities::from_bits(0x0800_0820_1e01_007f), cap);
    let all = Capabilities::from_bits(u64::MAX);
    assert_eq!((all.ams, all.dstrd, all.mpsmin, all.mpsmax, all.crms), (3, 15, 15, 15, 3));
}

#[test]
fn configuration_bits() {
    // What the Linux host writes to enable: EN, CSS 0, MPS 0, IOSQES 6, IOCQES 4.
    let cc = Configuration::from_bits(0x0046_0001);
    assert!(cc.en);
    assert_eq!((cc.css, cc.mps, cc.ams, cc.iosqes, cc.iocqes), (0, 0, 0, 6, 4));
    assert_eq!(cc.shn, ShutdownNotification::None);
    assert_eq!(cc.bits(), 0x0046_0001);
    assert_eq!(Configuration::from_bits(0x0046_4001).shn, ShutdownNotification::Normal);
    assert_eq!(Configuration::from_bits(0x0046_8001).shn, ShutdownNotification::Abrupt);
    assert_eq!(Configuration::from_bits(0x0000_0780).mps, 15);
    assert_eq!(Configuration::from_bits(0x0000_3800).ams, 7);
    assert_eq!(Configuration::from_bits(0x0000_0060).css, 6);
    assert!(Configuration::from_bits(1 << 24).crime);
}

#[test]
fn status_bits() {
    let csts = ControllerStatus {
        rdy: true,
        cfs: true,
        shst: ShutdownStatus::Complete,
        nssro: true,
        pp: true,
    };
    assert_eq!(csts.bits(), 0b11_1011);
    assert_eq!(ControllerStatus::from_bits(0b11_1011), csts);
    assert_eq!(ControllerStatus::from_bits(4).shst, ShutdownStatus::Occurring);
    assert_eq!(ControllerStatus::default().bits(), 0);
}

#[test]
fn versions() {
    assert_eq!(Version::V2_0.bits(), 0x0002_0000);
    assert_eq!(Version::from_bits(0x0001_0201).to_string(), "1.2.1");
    assert_eq!(Version::V2_0.to_string(), "2.0");
    assert!(Version::from_bits(0x0001_0400) < Version::V2_0);
}

#[test]
fn ready_timeouts_bits() {
    let crto = ReadyTimeouts { crwmt: 0x0102, crimt: 0x0304 };
    assert_eq!(crto.bits(), 0x0304_0102);
    assert_eq!(ReadyTimeouts::from_bits(0x0304_0102), crto);
}

proptest! {
    #[test]
    fn registers_round_trip(raw: u64, half: u32) {
        // Reserved bits and those of features no fabrics controller has read as zero.
        prop_assert_eq!(Capabilities::from_bits(raw).bits(), raw & 0x18ff_1fff_ff07_ffff);
        prop_assert_eq!(Configuration::from_bits(half).bits(), half & 0x01ff_fff1);
        prop_assert_eq!(ControllerStatus::from_bits(half).bits(), half & 0x3f);
        prop_assert_eq!(Version::from_bits(half).bits(), half);
        prop_assert_eq!(ReadyTimeouts::from_bits(half).bits(), half);
    }
}
