//! Who this data directory is: a small file that remembers cluster, number and name, so that a
//! directory is never taken for another node's.

use std::path::Path;

use crate::disk;
use crate::types::NodeId;
use crate::way_out::START_OVER;

/// What a data directory remembers. Written durably before the cluster is formed, and never changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub cluster_id: String,
    pub number: NodeId,
    pub name: String,
    pub disk_id: String,
    /// It founded its cluster by itself, and may begin group 0 again if a crash came in between.
    pub founded_alone: bool,
}

const FILE: &str = "IDENTITY";

impl Identity {
    /// The directory's identity, or `None` if it has none yet.
    pub(crate) fn read(dir: &Path) -> Result<Option<Identity>, String> {
        let path = dir.join(FILE);
        let text = match std::fs::read(&path) {
            // Damage that is not even text is for the checksum to find.
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        parse(&text).map(Some).map_err(|problem| {
            format!(
                "{}: {problem}; restore this file from a copy of the data directory, or {START_OVER}",
                path.display()
            )
        })
    }

    pub(crate) fn write(&self, dir: &Path) -> Result<(), String> {
        let path = dir.join(FILE);
        let body = format!(
            "cluster_id = {}\nnumber = {}\nname = {}\ndisk_id = {}\nfounded_alone = {}\n",
            self.cluster_id, self.number.0, self.name, self.disk_id, self.founded_alone
        );
        let text = format!("{body}{}", sum_line(&body));
        disk::write_atomic(&path, text.as_bytes()).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Whether the directory is what the configuration takes it for; says what to do if not.
    pub(crate) fn check(&self, dir: &Path, name: &str, disk_id: &str) -> Result<(), String> {
        let dir = dir.display();
        if self.name != name {
            return Err(format!(
                "the data directory {dir} belongs to node \"{}\", but node_id is \"{name}\": set node_id = \
                 \"{}\", or choose another data_dir",
                self.name, self.name
            ));
        }
        if self.disk_id != disk_id {
            return Err(format!(
                "the data directory {dir} is a mix of two: IDENTITY names disk {}, FORMAT names {disk_id}; \
                 restore both files from the same copy",
                self.disk_id
            ));
        }
        Ok(())
    }
}

/// The last line: another number or cluster must not come of a flipped bit.
fn sum_line(body: &str) -> String {
    format!("{SUM}{:08x}\n", crc32c::crc32c(body.as_bytes()))
}

const SUM: &str = "crc32c = ";

fn parse(text: &str) -> Result<Identity, String> {
    let body = &text[..text.rfind(SUM).ok_or("its checksum is missing")?];
    if text[body.len()..] != sum_line(body) {
        return Err("its checksum does not match".into());
    }
    let field = |name: &str| {
        text.lines()
            .filter_map(|line| line.split_once(" = "))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.to_string())
            .ok_or(format!("it has no line \"{name} = ...\""))
    };
    let number = field("number")?;
    Ok(Identity {
        cluster_id: field("cluster_id")?,
        number: NodeId(number.parse().map_err(|_| format!("number = {number} is not a number"))?),
        name: field("name")?,
        disk_id: field("disk_id")?,
        founded_alone: field("founded_alone")? == "true",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_and_is_held_to() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Identity::read(dir.path()).unwrap(), None);
        let identity = Identity {
            cluster_id: "c0ffee".into(),
            number: NodeId(1),
            name: "node1".into(),
            disk_id: "d".into(),
            founded_alone: true,
        };
        identity.write(dir.path()).unwrap();
        assert_eq!(Identity::read(dir.path()).unwrap(), Some(identity.clone()));
        identity.check(dir.path(), "node1", "d").unwrap();
        assert!(identity.check(dir.path(), "node2", "d").unwrap_err().contains("set node_id = \"node1\""));
        identity.check(dir.path(), "node1", "e").unwrap_err();
        let path = dir.path().join(FILE);
        let written = std::fs::read(&path).unwrap();
        for bit in 0..written.len() * 8 {
            let mut damaged = written.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &damaged).unwrap();
            Identity::read(dir.path()).unwrap_err();
        }
        for length in 0..written.len() {
            std::fs::write(&path, &written[..length]).unwrap();
            Identity::read(dir.path()).unwrap_err();
        }
    }
}
