//! Reading and writing of our own formats: little-endian, length-prefixed, checked.
//!
//! Everything on disk and between peers is made of these. Reading never panics and never allocates
//! more than the input holds.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The input ended early, or holds what its writer can't have written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what}: {problem}")]
pub struct Malformed {
    pub what: &'static str,
    pub problem: String,
}

impl Malformed {
    pub fn new(what: &'static str, problem: impl Into<String>) -> Malformed {
        Malformed { what, problem: problem.into() }
    }
}

/// Reads fields off the front of `input`; every error names `what`.
#[derive(Debug)]
pub struct Reader {
    what: &'static str,
    input: Bytes,
}

impl Reader {
    pub fn new(what: &'static str, input: Bytes) -> Reader {
        Reader { what, input }
    }

    pub fn error(&self, problem: impl Into<String>) -> Malformed {
        Malformed::new(self.what, problem)
    }

    fn need(&self, bytes: usize) -> Result<(), Malformed> {
        if self.input.remaining() < bytes {
            return Err(self.error(format!("{bytes} bytes wanted, {} left", self.input.remaining())));
        }
        Ok(())
    }

    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.need(1)?;
        Ok(self.input.get_u8())
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.need(4)?;
        Ok(self.input.get_u32_le())
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.need(8)?;
        Ok(self.input.get_u64_le())
    }

    pub fn u128(&mut self) -> Result<u128, Malformed> {
        Ok(u128::from(self.u64()?) | u128::from(self.u64()?) << 64)
    }

    /// A `u32` length and that many bytes, without copying them.
    pub fn bytes(&mut self) -> Result<Bytes, Malformed> {
        let len = self.u32()? as usize;
        self.need(len)?;
        Ok(self.input.split_to(len))
    }

    pub fn string(&mut self) -> Result<String, Malformed> {
        let bytes = self.bytes()?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.error("text is not UTF-8"))
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.input)
    }

    pub fn remaining(&self) -> usize {
        self.input.remaining()
    }

    /// Fails if anything is left.
    pub fn end(self) -> Result<(), Malformed> {
        if self.input.has_remaining() {
            return Err(self.error(format!("{} bytes too many", self.input.remaining())));
        }
        Ok(())
    }
}

/// Writes what [`Reader`] reads.
pub trait Writer {
    fn write_bytes(&mut self, bytes: &[u8]);
}

impl Writer for BytesMut {
    /// # Panics
    /// If `bytes` is 4 GiB or longer; limits keep everything far below.
    fn write_bytes(&mut self, bytes: &[u8]) {
        let len = u32::try_from(bytes.len()).expect("limits keep every field under 4 GiB");
        self.put_u32_le(len);
        self.put_slice(bytes);
    }
}
