//! For fuzzing: frames between nodes, their handshakes, and what answers tell of leaders.

use prost::Message as _;
use tonic::metadata::MetadataMap;

use super::handshake::{CLASSES, Local, check, check_answer, offer};
use super::leader::{CLUSTER, EPOCH, LEADER, Leader, PARTITION};
use crate::proto::v1;
use crate::raft::Class;
use crate::types::NodeId;

fn local() -> Local {
    Local { cluster_id: "c1".to_string(), number: NodeId(1) }
}

pub fn frame(input: &[u8]) -> bool {
    let Ok(frame) = v1::Frame::decode(input) else { return false };
    let Some(theirs) = frame.handshake else { return true };
    let local = local();
    match check(&local, &theirs) {
        Ok(accepted) => {
            assert!(accepted.from != local.number && theirs.cluster_id == local.cluster_id);
            check_answer(&local, accepted.from, accepted.class, &theirs)
                .expect("it is the one that was meant");
            true
        }
        Err(refusal) => {
            assert!(refusal.why.len() < 2048, "{refusal}");
            false
        }
    }
}

/// Values between line feeds.
pub fn leader(input: &[u8]) -> bool {
    let mut metadata = MetadataMap::new();
    for (key, value) in
        [LEADER, PARTITION, EPOCH, CLUSTER].into_iter().zip(input.split(|byte| *byte == b'\n'))
    {
        if let Ok(value) = value.try_into() {
            metadata.insert(key, value);
        }
    }
    let Some(leader) = Leader::read(&metadata) else { return false };
    let mut written = MetadataMap::new();
    leader.write(&mut written);
    assert_eq!(Leader::read(&written), Some(leader));
    true
}

pub fn frame_seeds() -> Vec<Vec<u8>> {
    let theirs = Local { cluster_id: "c1".to_string(), number: NodeId(2) };
    let opening =
        |class: Class| v1::Frame { handshake: Some(offer(&theirs, NodeId(1), class)), messages: vec![] };
    let message =
        v1::Message { request: 1, group: 2, from: 3, to: 4, body: "body".into(), refusal: "no".into() };
    let mut seeds: Vec<Vec<u8>> = CLASSES.map(|class| opening(class).encode_to_vec()).to_vec();
    seeds.push(v1::Frame { handshake: None, messages: vec![message.clone(), message] }.encode_to_vec());
    seeds
}

pub fn leader_seeds() -> Vec<Vec<u8>> {
    vec![b"a:1\n3\n7\nc1".to_vec()]
}
