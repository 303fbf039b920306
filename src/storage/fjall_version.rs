//! What fjall 3.1 leaves to be done about its versions: it writes a checksum of each, and does not look at it.
//!
//! A version says of which tables a keyspace consists. One flipped bit in it may leave a table out without a
//! word, or make lsm-tree 3.1 ask for 70 GB of memory, which ends the process without a reason.
//!
//! # The format
//! As `version/persist.rs` of lsm-tree 3.1 writes it; integers are little-endian. `keyspaces/N/current` is
//! replaced after the version that it names, and its folder, were fsynced.
//! ```text
//! current    id u64 | checksum u128 | type u8 (0: XXH3-128 of the whole file v<id>)
//! ```

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

const XXH3: u8 = 0;

/// What is wrong with the versions of the database in `dir`, if anything is; to be asked before it is opened.
pub(super) fn damage(dir: &Path) -> io::Result<Option<String>> {
    let keyspaces = match fs::read_dir(dir.join("keyspaces")) {
        Ok(keyspaces) => keyspaces,
        // It is to be created.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for keyspace in keyspaces {
        if let Some(damage) = damage_of(&keyspace?.path())? {
            return Ok(Some(damage));
        }
    }
    Ok(None)
}

fn damage_of(keyspace: &Path) -> io::Result<Option<String>> {
    let path = keyspace.join("current");
    let current = match fs::read(&path) {
        Ok(current) => current,
        // Of a keyspace whose creation was broken off; fjall knows what to do.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some((id, checksum)) = decode(&current) else {
        return Ok(Some(format!("{} is not what fjall writes", path.display())));
    };
    let version = keyspace.join(format!("v{id}"));
    match fs::read(&version) {
        Ok(bytes) if xxh3_128(&bytes) == checksum => Ok(None),
        Ok(_) => Ok(Some(format!("the checksum of {} does not match", version.display()))),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Ok(Some(format!("{} names {}, which is not there", path.display(), version.display())))
        }
        Err(error) => Err(error),
    }
}

fn decode(current: &[u8]) -> Option<(u64, u128)> {
    let (id, rest) = current.split_first_chunk()?;
    let (checksum, rest) = rest.split_first_chunk()?;
    (rest == [XXH3]).then(|| (u64::from_le_bytes(*id), u128::from_le_bytes(*checksum)))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::{Batch, Error, Kind, Options, open};
    use super::*;

    fn files(dir: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for keyspace in fs::read_dir(dir.join("keyspaces")).unwrap() {
            let keyspace = keyspace.unwrap().path();
            let (id, _) = decode(&fs::read(keyspace.join("current")).unwrap()).unwrap();
            found.extend([keyspace.join("current"), keyspace.join(format!("v{id}"))]);
        }
        found
    }

    #[test]
    fn a_flipped_bit_is_found_before_fjall_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::default();
        for round in 0..3u8 {
            let engine = open(Kind::Fjall, dir.path(), &options).unwrap();
            // More than a memtable holds, so that there are tables.
            for number in 0..40u8 {
                let mut batch = Batch::default();
                batch.put(vec![round, number], vec![number; 1024 * 1024]);
                engine.apply(batch).unwrap();
            }
            engine.close().unwrap();
            assert_eq!(damage(dir.path()).unwrap(), None);
        }
        let files = files(dir.path());
        assert!(files.len() >= 4, "{files:?}");
        for path in files {
            let whole = fs::read(&path).unwrap();
            for byte in (0..whole.len()).step_by(whole.len() / 20 + 1) {
                let mut flipped = whole.clone();
                flipped[byte] ^= 1 << (byte % 8);
                fs::write(&path, flipped).unwrap();
                assert!(damage(dir.path()).unwrap().is_some(), "byte {byte} of {}", path.display());
                let refused = open(Kind::Fjall, dir.path(), &options).unwrap_err();
                assert!(matches!(refused, Error::Corrupt { .. }), "{refused}");
            }
            fs::write(&path, whole).unwrap();
        }
        open(Kind::Fjall, dir.path(), &options).unwrap().close().unwrap();
    }
}
