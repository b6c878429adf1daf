//! The controller of `answers` over TCP: one thread per connection, blocking sockets. It exists to try the host where the
//! real target cannot be made to misbehave.

use crate::answers::{Answer, Answers, Script, State};
use crate::wire::Wire;
use nvme::tcp::{
    C2hData, CapsuleCmd, CapsuleResp, CommonHeader, DigestFlags, Flags, H2cData, IcReq, IcResp,
    R2t, crc32c,
};
use nvme::{Cqe, Sqe, Status};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use zerocopy::{FromBytes, IntoBytes};

#[derive(Debug)]
pub(crate) struct Stub {
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<State>,
}

impl Stub {
    pub(crate) fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = State::new(script);
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || Connection::new(stream.unwrap(), state).serve());
            }
        });
        Self { address, state }
    }
}

struct Connection {
    stream: TcpStream,
    answers: Answers,
    success_flag: bool,
    wire: Wire,
    /// Commands that came while data was awaited.
    waiting: VecDeque<(Vec<u8>, Vec<u8>)>,
}

impl Connection {
    fn new(stream: TcpStream, state: Arc<State>) -> Self {
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            success_flag: state.script.success_flag,
            answers: Answers::new(state),
            wire: Wire::default(),
            waiting: VecDeque::new(),
        }
    }

    /// One PDU: header and data.
    fn receive(&mut self) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut header = vec![0; 8];
        self.stream.read_exact(&mut header).ok()?;
        let common = CommonHeader::read_from_bytes(&header).unwrap();
        let mut rest = vec![0; usize::try_from(common.plen.get()).unwrap() - 8];
        self.stream.read_exact(&mut rest).ok()?;
        header.extend(rest);
        let mut data = match common.pdo {
            0 => Vec::new(),
            pdo => header.split_off(usize::from(pdo)),
        };
        if common.flags().contains(Flags::DATA_DIGEST) && !data.is_empty() {
            let digest = data.split_off(data.len() - 4);
            assert_eq!(digest, crc32c(&data).to_le_bytes());
        }
        let digest = header.split_off(usize::from(common.hlen));
        if common.flags().contains(Flags::HEADER_DIGEST) {
            assert_eq!(digest[..4], crc32c(&header).to_le_bytes());
        }
        Some((header, data))
    }

    fn send(&mut self, header: &[u8], data: &[u8]) {
        // A host that has gone is noticed when reading.
        let _ = self.stream.write_all(&self.wire.pdu(header, data));
    }

    fn answer(&mut self, sqe: &Sqe, status: Status, result: u64) {
        let cqe = Cqe::new(sqe.cid.get(), 0, status).with_result(result);
        let flags = self.wire.flags(false);
        self.send(CapsuleResp::new(cqe, flags).as_bytes(), &[]);
    }

    fn answer_with(&mut self, sqe: &Sqe, data: &[u8]) {
        let wanted = usize::try_from(sqe.sgl().length()).unwrap();
        let mut data = data.to_vec();
        data.resize(wanted, 0);
        let success = self.success_flag;
        let half = if data.len() > 4096 { data.len() / 2 } else { data.len() };
        for (index, piece) in data.chunks(half).enumerate() {
            let mut flags = self.wire.flags(true);
            if (index + 1) * half >= data.len() {
                flags |= Flags::LAST;
                flags.set(Flags::SUCCESS, success);
            }
            let offset = u32::try_from(index * half).unwrap();
            let length = u32::try_from(piece.len()).unwrap();
            let header = C2hData::new(sqe.cid.get(), offset, length, flags, 0);
            self.send(header.as_bytes(), piece);
        }
        if !success {
            self.answer(sqe, Status::SUCCESS, 0);
        }
    }

    fn fetch(&mut self, sqe: &Sqe, in_capsule: Vec<u8>) -> Vec<u8> {
        let length = sqe.sgl().length();
        if !in_capsule.is_empty() || length == 0 {
            return in_capsule;
        }
        let flags = self.wire.flags(false);
        self.send(R2t::new(sqe.cid.get(), 5, 0, length, flags).as_bytes(), &[]);
        let mut data = Vec::new();
        while data.len() < usize::try_from(length).unwrap() {
            let (header, piece) = self.receive().unwrap();
            if header.len() == size_of::<CapsuleCmd>() {
                self.waiting.push_back((header, piece));
                continue;
            }
            let header = H2cData::read_from_bytes(&header).unwrap();
            assert_eq!(usize::try_from(header.datao.get()).unwrap(), data.len());
            data.extend(piece);
        }
        data
    }

    fn serve(mut self) {
        let Some((request, _)) = self.receive() else { return };
        let request = IcReq::read_from_bytes(&request).unwrap();
        self.stream.write_all(IcResp::new(0, request.digests(), 4096).as_bytes()).unwrap();
        self.wire.header_digest = request.digests().contains(DigestFlags::HEADER);
        self.wire.data_digest = request.digests().contains(DigestFlags::DATA);
        while let Some((header, data)) = self.waiting.pop_front().or_else(|| self.receive()) {
            let Ok(capsule) = CapsuleCmd::read_from_bytes(&header) else { return };
            let sqe = capsule.sqe;
            let data =
                if self.answers.takes_data(&sqe) { self.fetch(&sqe, data) } else { Vec::new() };
            match self.answers.to(&sqe, &data) {
                Answer::Plain(status, result) => self.answer(&sqe, status, result),
                Answer::Data(data) => self.answer_with(&sqe, &data),
            }
        }
    }
}
