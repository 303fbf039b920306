//! HTTP/2 by hand (RFC 9113), for clients that do what no library lets them: every frame as bytes, in any
//! order, of any length, over a blocking socket.

#![allow(dead_code)] // each test file uses a part of it
#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// SETTINGS_INITIAL_WINDOW_SIZE.
pub const WINDOW: u16 = 4;

/// How long any one read or write may take; a server that does neither hangs the attack, not the test.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// One frame, whatever it says.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut out = vec![length[1], length[2], length[3], kind, flags];
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = values
        .iter()
        .flat_map(|(id, value)| id.to_be_bytes().into_iter().chain(value.to_be_bytes()))
        .collect();
    frame(SETTINGS, 0, 0, &payload)
}

pub fn window_update(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

pub fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())
}

/// A header field as HPACK has it when nothing is compressed (RFC 7541, 6.2.2): names and values shorter
/// than 127 bytes.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let mut out = vec![0];
    for text in [name, value] {
        assert!(text.len() < 127);
        out.push(text.len() as u8);
        out.extend(text.as_bytes());
    }
    out
}

/// The header block of a gRPC call.
pub fn call(path: &str) -> Vec<u8> {
    [
        field(":method", "POST"),
        field(":scheme", "http"),
        field(":path", path),
        field(":authority", "x"),
        field("content-type", "application/grpc"),
        field("te", "trailers"),
    ]
    .concat()
}

/// A message as gRPC frames it.
pub fn message(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0], &length[..], bytes].concat()
}

/// Opens a stream with a call, its request still to come.
pub fn open(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &call(path))
}

/// The same with the whole of its request.
pub fn request(stream: u32, path: &str, body: &[u8]) -> Vec<u8> {
    [open(stream, path), frame(DATA, END_STREAM, stream, &message(body))].concat()
}

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// A connection.
pub struct Wire(pub TcpStream);

impl Wire {
    /// Connected, nothing said.
    pub fn silent(port: u16) -> Wire {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(STUCK_AFTER)).unwrap();
        stream.set_write_timeout(Some(STUCK_AFTER)).unwrap();
        Wire(stream)
    }

    /// Opened as the protocol has it, with these settings.
    pub fn open_with(port: u16, values: &[(u16, u32)]) -> Wire {
        let mut wire = Wire::silent(port);
        // The server may close at once: then the first thing that is sent or read says so.
        let _ = wire.send(&[&PREFACE[..], &settings(values), &frame(SETTINGS, 1, 0, &[])].concat());
        wire
    }

    pub fn open(port: u16) -> Wire {
        Wire::open_with(port, &[])
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    pub fn receive(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head)?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload)?;
        let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
        Ok(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Reads until the server closes; panics if it does not within `within`. The error that its GOAWAY
    /// named, if there was one.
    pub fn closed(&mut self, within: Duration) -> Option<u32> {
        self.0.set_read_timeout(Some(within)).unwrap();
        let mut said = None;
        loop {
            match self.receive() {
                Ok(frame) if frame.kind == GOAWAY => {
                    said = Some(u32::from_be_bytes(frame.payload[4..8].try_into().unwrap()));
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    panic!("the server keeps the connection open");
                }
                Err(_) => return said,
            }
        }
    }

    /// Says that nothing more will come, and goes on reading.
    pub fn finish(&self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }
}
