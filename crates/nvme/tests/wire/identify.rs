//! Identify data structures.

use crate::{bytes, golden, numbered};
use nvme::identify::{
    CommandSets, ControllerList, ControllerType, Csi, Descriptor, DescriptorWriter, Descriptors,
    IdentifyController, IdentifyNamespace, IndependentNamespace, LbaFormat, NamespaceList,
    NvmController, NvmNamespace, PowerState, ascii,
};
use nvme::{Nqn, U16, U32, U64, U128};
use proptest::prelude::*;
use uuid::Uuid;
use zerocopy::FromZeros;

#[test]
fn controller_bytes() {
    let mut identify = IdentifyController::new_zeroed();
    identify.vid = U16::new(0x1b36);
    identify.ssvid = U16::new(0x1af4);
    identify.sn = ascii("TG0001");
    identify.mn = ascii("Tidegate");
    identify.fr = ascii("0.1.0");
    identify.rab = 6;
    identify.ieee = [1, 2, 3];
    identify.cmic = 0x0b;
    identify.mdts = 8;
    identify.cntlid = U16::new(0x0102);
    identify.ver = U32::new(0x0002_0000);
    identify.rtd3e = U32::new(10_000_000);
    identify.oaes = U32::new(0x8000_0900);
    identify.ctratt =
        U32::new(IdentifyController::CTRATT_HOST_ID | IdentifyController::CTRATT_TBKAS);
    identify.cntrltype = ControllerType::Io.code();
    identify.crdt1 = U16::new(5);
    identify.oacs = U16::new(0x0102);
    identify.acl = 3;
    identify.aerl = 4;
    identify.frmw = 3;
    identify.lpa = 0x26;
    identify.elpe = 63;
    identify.tnvmcap = U128::new(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
    identify.kas = U16::new(10);
    identify.anatt = 10;
    identify.anacap = 0x1f;
    identify.anagrpmax = U32::new(32);
    identify.nanagrpid = U32::new(31);
    identify.sqes = IdentifyController::SQES_NVM;
    identify.cqes = IdentifyController::CQES_NVM;
    identify.maxcmd = U16::new(128);
    identify.nn = U32::new(1024);
    identify.oncs = U16::new(0x008d);
    identify.vwc = IdentifyController::VWC_PRESENT | IdentifyController::VWC_FLUSH_ALL;
    identify.awun = U16::new(1);
    identify.awupf = U16::new(2);
    identify.acwu = U16::new(3);
    identify.sgls = U32::new(0x0030_0001);
    identify.mnan = U32::new(1024);
    identify.subnqn = "nqn.2026-11.io.tidegate:quickstart".parse::<Nqn>().unwrap().to_wire();
    identify.ioccsz = U32::new(516);
    identify.iorcsz = U32::new(1);
    identify.msdbd = 1;
    identify.ofcs = U16::new(IdentifyController::OFCS_DISCONNECT);
    identify.psd[0].mp = U16::new(2500);
    let expected = bytes(
        4096,
        &[
            (0, &[0x36, 0x1b, 0xf4, 0x1a]),
            (4, b"TG0001              "),
            (24, b"Tidegate                                "),
            (64, b"0.1.0   "),
            (72, &[6, 1, 2, 3, 0x0b, 8, 0x02, 0x01]),
            (80, &[0, 0, 2, 0]),
            (88, &[0x80, 0x96, 0x98, 0x00]),
            (92, &[0x00, 0x09, 0x00, 0x80]),
            (96, &[0x41]),
            (111, &[1]),
            (128, &[5]),
            (256, &[0x02, 0x01, 3, 4, 3, 0x26, 63]),
            (280, &[16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1]),
            (320, &[10]),
            (342, &[10, 0x1f]),
            (344, &[32]),
            (348, &[31]),
            (512, &[0x66, 0x44, 128, 0, 0, 4, 0, 0, 0x8d]),
            (525, &[0x07, 1, 0, 2, 0]),
            (532, &[3]),
            (536, &[0x01, 0x00, 0x30, 0x00, 0x00, 0x04]),
            (768, b"nqn.2026-11.io.tidegate:quickstart"),
            (1792, &[0x04, 0x02, 0, 0, 1]),
            (1803, &[1, 1]),
            (2048, &[0xc4, 0x09]),
        ],
    );
    golden(&identify, &expected);
}

#[test]
fn namespace_bytes() {
    let mut identify = IdentifyNamespace::new_zeroed();
    identify.nsze = U64::new(0x0102_0304_0506_0708);
    identify.ncap = U64::new(2);
    identify.nuse = U64::new(3);
    identify.nsfeat = 0x10;
    identify.flbas = 0;
    identify.nmic = 1;
    identify.rescap = 2;
    identify.dlfeat = 0x09;
    identify.noiob = U16::new(0x0102);
    identify.nvmcap = U128::new(4);
    identify.npwg = U16::new(1);
    identify.npwa = U16::new(2);
    identify.npdg = U16::new(3);
    identify.npda = U16::new(4);
    identify.nows = U16::new(5);
    identify.mssrl = U16::new(6);
    identify.mcl = U32::new(7);
    identify.msrc = 8;
    identify.anagrpid = U32::new(1);
    identify.nsattr = IdentifyNamespace::WRITE_PROTECTED;
    identify.nvmsetid = U16::new(9);
    identify.endgid = U16::new(10);
    identify.nguid = [0xaa; 16];
    identify.eui64 = [0xbb; 8];
    identify.lbaf[0] = LbaFormat::plain(4096).unwrap();
    identify.lbaf[63].rp = 3;
    let expected = bytes(
        4096,
        &[
            (0, &[8, 7, 6, 5, 4, 3, 2, 1, 2]),
            (16, &[3]),
            (24, &[0x10]),
            (30, &[1, 2, 0, 9]),
            (46, &[2, 1, 4]),
            (64, &[1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0, 7, 0, 0, 0, 8]),
            (92, &[1]),
            (99, &[1, 9, 0, 10]),
            (104, &[0xaa; 16]),
            (120, &[0xbb; 8]),
            (128, &[0, 0, 12, 0]),
            (383, &[3]),
        ],
    );
    golden(&identify, &expected);
    assert_eq!(identify.format().and_then(LbaFormat::block_size), Some(4096));
    identify.flbas = 0x6f;
    assert_eq!(identify.format().map(|format| format.rp), Some(3));
}

#[test]
fn block_sizes() {
    assert_eq!(LbaFormat::plain(512).unwrap().lbads, 9);
    for wrong in [0, 1, 256, 513, 1000, 4097] {
        assert_eq!(LbaFormat::plain(wrong), None);
    }
    for lbads in 0..=u8::MAX {
        let format = LbaFormat { lbads, ..LbaFormat::default() };
        let expected = (9..32).contains(&lbads).then(|| 1u32 << lbads);
        assert_eq!(format.block_size(), expected);
    }
}

#[test]
fn other_structures_by_offset() {
    let namespace: IndependentNamespace = numbered();
    assert_eq!(namespace.nmic, 1);
    assert_eq!(namespace.anagrpid.get(), 0x0706_0504);
    assert_eq!((namespace.nsattr, namespace.nstat), (8, 14));
    assert_eq!(namespace.nvmsetid.get(), 0x0b0a);
    let controller: NvmController = numbered();
    assert_eq!((controller.vsl, controller.wzsl, controller.wusl, controller.dmrl), (0, 1, 2, 3));
    assert_eq!(controller.dmrsl.get(), 0x0706_0504);
    assert_eq!(controller.dmsl.get(), 0x0f0e_0d0c_0b0a_0908);
    let namespace: NvmNamespace = numbered();
    assert_eq!(namespace.pic, 8);
    assert_eq!(namespace.elbaf[0].get(), 0x0f0e_0d0c);
    let state: PowerState = numbered();
    assert_eq!((state.mp.get(), state.flags, state.enlat.get()), (0x0100, 3, 0x0706_0504));
    assert_eq!((state.exlat.get(), state.rrt, state.rwl), (0x0b0a_0908, 12, 15));
    assert_eq!(
        (state.idlp.get(), state.ips, state.actp.get(), state.apws),
        (0x1110, 18, 0x1514, 22)
    );
    golden(&CommandSets::one(CommandSets::NVM), &bytes(4096, &[(0, &[1])]));
}

#[test]
fn lists() {
    golden(
        &NamespaceList::new([1, 2, 0x0102_0304]),
        &bytes(4096, &[(0, &[1, 0, 0, 0, 2, 0, 0, 0, 4, 3, 2, 1])]),
    );
    golden(&ControllerList::new([1, 0xffef]), &bytes(4096, &[(0, &[2, 0, 1, 0, 0xef, 0xff])]));
    assert_eq!(NamespaceList::new(1..).iter().count(), 1024);
    assert_eq!(ControllerList::new(0..).iter().count(), 2047);
    let lying = ControllerList { count: U16::new(u16::MAX), ..ControllerList::default() };
    assert_eq!(lying.iter().count(), 2047);
}

#[test]
fn descriptor_bytes() {
    let uuid = Uuid::from_bytes([0x11; 16]);
    let mut writer = DescriptorWriter::new();
    let all = [
        Descriptor::Eui64([0x22; 8]),
        Descriptor::Nguid([0x33; 16]),
        Descriptor::Uuid(uuid),
        Descriptor::Csi(Csi::Nvm),
    ];
    for descriptor in all {
        writer.push(descriptor);
    }
    let expected = bytes(
        4096,
        &[
            (0, &[1, 8, 0, 0]),
            (4, &[0x22; 8]),
            (12, &[2, 16, 0, 0]),
            (16, &[0x33; 16]),
            (32, &[3, 16, 0, 0]),
            (36, &[0x11; 16]),
            (52, &[4, 1, 0, 0, 0]),
        ],
    );
    assert_eq!(writer.bytes()[..], expected);
    assert_eq!(Descriptors::new(writer.bytes()).collect::<Vec<_>>(), all);
}

#[test]
fn names_of_zeroes_are_left_out() {
    let mut writer = DescriptorWriter::new();
    writer.push(Descriptor::Eui64([0; 8]));
    writer.push(Descriptor::Nguid([0; 16]));
    writer.push(Descriptor::Uuid(Uuid::nil()));
    assert_eq!(writer.bytes(), &[0; 4096]);
    for _ in 0..1000 {
        writer.push(Descriptor::Nguid([1; 16]));
    }
    assert_eq!(Descriptors::new(writer.bytes()).count(), 4096 / 20);
}

#[test]
fn ascii_fields() {
    assert_eq!(&ascii::<4>("abcdef"), b"abcd");
    assert_eq!(&ascii::<6>("a\u{e9}\n~ "), b"a??~  ");
}

proptest! {
    #[test]
    fn no_descriptor_list_panics(raw in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Descriptors::new(&raw).count() <= raw.len() / 5);
    }

    #[test]
    fn descriptors_that_are_wrong_are_skipped(nidt in 5u8.., nidl in 0u8..100) {
        let mut raw = vec![nidt, nidl, 0, 0];
        raw.extend(std::iter::repeat_n(7, usize::from(nidl)));
        raw.extend([4, 1, 0, 0, 2, 0, 0, 0, 0]);
        prop_assert_eq!(Descriptors::new(&raw).collect::<Vec<_>>(), [Descriptor::Csi(Csi::Zoned)]);
    }
}
