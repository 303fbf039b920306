//! Marks: what a replica's records came to at the entries of its log that say so, for replicas to compare.

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{Malformed, Reader};

/// Marks that are kept: who lags a little still has those that its leader asks for.
const MARKS_MAX: usize = 16;

/// Log indexes, ascending, and the hash of all records there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Marks(Vec<(u64, u128)>);

impl Marks {
    pub fn set(&mut self, index: u64, hash: u128) {
        self.0.retain(|(at, _)| *at < index);
        self.0.push((index, hash));
        let excess = self.0.len().saturating_sub(MARKS_MAX);
        self.0.drain(..excess);
    }

    pub fn at(&self, index: u64) -> Option<u128> {
        self.0.iter().find(|(at, _)| *at == index).map(|(_, hash)| *hash)
    }

    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.0.len() * 24);
        for (index, hash) in &self.0 {
            out.put_u64_le(*index);
            out.put_u128_le(*hash);
        }
        out.freeze()
    }

    pub fn decode(bytes: Bytes) -> Result<Marks, Malformed> {
        let mut input = Reader::new("marks", bytes);
        let mut marks = Marks::default();
        while input.remaining() > 0 {
            let index = input.u64()?;
            marks.0.push((index, input.u128()?));
        }
        Ok(marks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept() {
        let mut marks = Marks::default();
        for index in 1..=20_u64 {
            marks.set(index * 10, u128::from(index) << 70 | 1);
        }
        assert_eq!(marks.at(200), Some(20 << 70 | 1));
        assert_eq!(marks.at(50), Some(5 << 70 | 1));
        assert_eq!((marks.at(40), marks.at(55)), (None, None));
        assert_eq!(Marks::decode(marks.encode()).unwrap(), marks);
        assert!(Marks::decode(Bytes::from_static(&[1; 30])).is_err());
    }
}
