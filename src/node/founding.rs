//! What a node has promised to found: a small file, `PREPARED`, from the first node's Prepare until the
//! cluster is formed. A node that holds one takes part in no other cluster.

use std::path::{Path, PathBuf};

use prost::Message as _;

use crate::disk;
use crate::proto::v1::Founding;

const FILE: &str = "PREPARED";

/// First bytes of the file: its name and version.
const MAGIC: &[u8; 8] = b"RKVPREP1";

/// The founding that this directory is prepared for, if there is one.
pub(super) fn read(dir: &Path) -> Result<Option<Founding>, String> {
    let path = path(dir);
    let content = match std::fs::read(&path) {
        Ok(content) => content,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    parse(&content).map(Some).map_err(|problem| {
        format!("{}: {problem}; restore the file from a copy of the data directory", path.display())
    })
}

/// Durable when it returns.
pub(super) fn write(dir: &Path, founding: &Founding) -> Result<(), String> {
    let mut content = MAGIC.to_vec();
    content.extend_from_slice(&founding.encode_to_vec());
    content.extend_from_slice(&crc32c::crc32c(&content).to_le_bytes());
    let path = path(dir);
    disk::write_atomic(&path, &content).map_err(|error| format!("{}: {error}", path.display()))
}

/// Forgets it, once the cluster is formed.
pub(super) fn remove(dir: &Path) -> Result<(), String> {
    let path = path(dir);
    match std::fs::remove_file(&path) {
        Ok(()) => disk::sync_dir(dir).map_err(|error| format!("{}: {error}", dir.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

fn parse(content: &[u8]) -> Result<Founding, String> {
    let (body, sum) = content.split_last_chunk::<4>().ok_or("too short")?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
        return Err("its checksum does not match: the file was changed or the disk is failing".into());
    }
    let body = body.strip_prefix(MAGIC.as_slice()).ok_or("not of this version")?;
    Founding::decode(body).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_founding_survives_and_any_flipped_bit_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        let founding = Founding { cluster_id: "c0ffee".into(), settings: None, founders: Vec::new() };
        write(dir.path(), &founding).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(founding));
        let content = std::fs::read(path(dir.path())).unwrap();
        for bit in 0..content.len() * 8 {
            let mut changed = content.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            parse(&changed).unwrap_err();
        }
        remove(dir.path()).unwrap();
        remove(dir.path()).unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
    }
}
