//! What an answer says about routing. A node that had to pass a call on tells who leads the key's
//! partition, in the answer's metadata: whoever asked goes straight there from then on. Who does not
//! look at it loses nothing but the detour.
//!
//! | metadata | what |
//! |---|---|
//! | `rushkv-leader` | host:port of the leader, as other nodes dial it |
//! | `rushkv-partition` | the key's partition |
//! | `rushkv-epoch` | of the routing table that says so |
//! | `rushkv-cluster` | the cluster's id; in a request: the cluster that it is meant for |

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

use crate::types::{Epoch, PartitionId};

pub(super) const LEADER: &str = "rushkv-leader";
pub(super) const PARTITION: &str = "rushkv-partition";
pub(super) const EPOCH: &str = "rushkv-epoch";

/// In a request: the id of the cluster that it is meant for. An address that one cluster's nodes tell
/// may be another cluster's seen from elsewhere (behind a tunnel, in a container); the wrong one refuses.
pub const CLUSTER: &str = "rushkv-cluster";

/// Metadata of the error of a node that refuses for that reason: the cluster that was meant.
pub const OF_ANOTHER_CLUSTER: &str = "meant_for_cluster";

/// Who leads a key's partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    pub cluster_id: String,
    pub epoch: Epoch,
    pub partition: PartitionId,
    pub address: String,
}

impl Leader {
    pub fn write(&self, metadata: &mut MetadataMap) {
        let texts = [
            (LEADER, self.address.clone()),
            (PARTITION, self.partition.0.to_string()),
            (EPOCH, self.epoch.0.to_string()),
            (CLUSTER, self.cluster_id.clone()),
        ];
        // All or nothing; an address that is no header value can't be dialled either.
        let values: Result<Vec<(_, MetadataValue<Ascii>)>, _> =
            texts.into_iter().map(|(key, text)| Ok::<_, ()>((key, text.parse().map_err(drop)?))).collect();
        for (key, value) in values.into_iter().flatten() {
            metadata.insert(key, value);
        }
    }

    /// `None` if the answer says nothing, or nothing that can be understood.
    pub fn read(metadata: &MetadataMap) -> Option<Leader> {
        let text = |key| metadata.get(key)?.to_str().ok();
        Some(Leader {
            address: text(LEADER)?.to_string(),
            partition: PartitionId(text(PARTITION)?.parse().ok()?),
            epoch: Epoch(text(EPOCH)?.parse().ok()?),
            cluster_id: text(CLUSTER)?.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_comes_through_metadata() {
        let leader = Leader {
            cluster_id: "00c0ffee".into(),
            epoch: Epoch(7),
            partition: PartitionId(3),
            address: "[::1]:8080".into(),
        };
        let mut metadata = MetadataMap::new();
        assert_eq!(Leader::read(&metadata), None);
        leader.write(&mut metadata);
        assert_eq!(Leader::read(&metadata), Some(leader.clone()));
        metadata.insert(EPOCH, "x".parse().unwrap());
        assert_eq!(Leader::read(&metadata), None, "half of it is nothing");

        let mut metadata = MetadataMap::new();
        Leader { address: "no\nheader".into(), ..leader }.write(&mut metadata);
        assert!(metadata.is_empty());
    }
}
