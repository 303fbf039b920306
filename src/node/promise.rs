//! What a node has promised and a crash must not make it forget: small files beside its identity.
//!
//! `PREPARED`, from the first node's Prepare until the cluster is formed, is the founding to take part in.
//! `JOINING`, from when a cluster of one gives itself up until its node is a member elsewhere, is where to
//! go. A node that holds one takes part in no other cluster.

use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use crate::disk;
use crate::proto::v1;
use crate::way_out::START_OVER;

pub(super) const PREPARED: Promise<v1::Founding> = Promise::new("PREPARED", b"RKVPREP1");
pub(super) const JOINING: Promise<v1::Joining> = Promise::new("JOINING", b"RKVJOIN1");

/// One kind of promise: a message behind its name and version, with a checksum.
#[derive(Debug)]
pub(super) struct Promise<M> {
    file: &'static str,
    magic: &'static [u8; 8],
    message: PhantomData<M>,
}

impl<M: prost::Message + Default> Promise<M> {
    const fn new(file: &'static str, magic: &'static [u8; 8]) -> Promise<M> {
        Promise { file, magic, message: PhantomData }
    }

    /// What this directory has promised, if anything.
    pub fn read(&self, dir: &Path) -> Result<Option<M>, String> {
        let path = self.path(dir);
        let content = match std::fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        self.parse(&content).map(Some).map_err(|problem| {
            format!(
                "{}: {problem}; restore this file from a copy of the data directory, or {START_OVER}",
                path.display()
            )
        })
    }

    /// Durable when it returns.
    pub fn write(&self, dir: &Path, message: &M) -> Result<(), String> {
        let mut content = self.magic.to_vec();
        content.extend_from_slice(&message.encode_to_vec());
        content.extend_from_slice(&crc32c::crc32c(&content).to_le_bytes());
        let path = self.path(dir);
        disk::write_atomic(&path, &content).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Forgets it, durably, once it is kept.
    pub fn remove(&self, dir: &Path) -> Result<(), String> {
        let path = self.path(dir);
        match std::fs::remove_file(&path) {
            Ok(()) => disk::sync_dir(dir).map_err(|error| format!("{}: {error}", dir.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }

    fn path(&self, dir: &Path) -> PathBuf {
        dir.join(self.file)
    }

    fn parse(&self, content: &[u8]) -> Result<M, String> {
        let (body, sum) = content.split_last_chunk::<4>().ok_or("too short")?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
            return Err("its checksum does not match: the file was changed or the disk is failing".into());
        }
        let body = body.strip_prefix(self.magic.as_slice()).ok_or("not of this version")?;
        M::decode(body).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_survives_and_any_flipped_bit_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert_eq!(PREPARED.read(dir).unwrap(), None);
        let founding = v1::Founding { cluster_id: "c0ffee".into(), settings: None, founders: Vec::new() };
        let joining =
            v1::Joining { cluster_id: "c0ffee".into(), addresses: Vec::new(), left_disk_id: "d".into() };
        PREPARED.write(dir, &founding).unwrap();
        JOINING.write(dir, &joining).unwrap();
        assert_eq!(PREPARED.read(dir).unwrap(), Some(founding));
        assert_eq!(JOINING.read(dir).unwrap(), Some(joining));
        let content = std::fs::read(PREPARED.path(dir)).unwrap();
        for bit in 0..content.len() * 8 {
            let mut changed = content.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            PREPARED.parse(&changed).unwrap_err();
        }
        JOINING.parse(&content).unwrap_err();
        PREPARED.remove(dir).unwrap();
        PREPARED.remove(dir).unwrap();
        assert_eq!(PREPARED.read(dir).unwrap(), None);
    }
}
