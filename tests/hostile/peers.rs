//! Peers that speak nonsense after a handshake that fits, or lie in it. Nothing is secret in a handshake, so
//! this guards against a node gone mad, not against one that is sent to do harm.

use std::time::{Duration, Instant};

use prost::Message as _;
use rushkv::error::{Happened, Reason, from_status};
use rushkv::kv::{self, Op, Precondition};
use rushkv::limits::{BATCH_OPERATIONS_MAX, KEY_BYTES_MAX, PARTITIONS_MAX, VALUE_BYTES_MAX};
use rushkv::proto::v1;
use rushkv::proto::v1::peer_client::PeerClient;
use rushkv::types::{NodeId, ReplicaId};

use crate::http2::*;
use crate::siege::{Dice, Siege};
use crate::{ATTACK, for_a_while};

const EXCHANGE: &str = "/rushkv.v1.Transport/Exchange";
const SEED: u64 = 0x0bad_9ee5;

fn handshake(cluster_id: &str, from: u32, class: i32) -> v1::Frame {
    let handshake = v1::Handshake {
        cluster_id: cluster_id.into(),
        from_node: from,
        to_node: 1,
        class,
        protocol_min: 1,
        protocol_max: 1,
    };
    v1::Frame { handshake: Some(handshake), messages: Vec::new() }
}

fn data(stream: u32, frame_of_messages: &v1::Frame) -> Vec<u8> {
    let bytes = message(&frame_of_messages.encode_to_vec());
    bytes.chunks(16 * 1024).flat_map(|part| frame(DATA, 0, stream, part)).collect()
}

fn to_replica(request: u64, group: u32, from: u32, body: Vec<u8>) -> v1::Message {
    v1::Message {
        request,
        group,
        from: ReplicaId::new(NodeId(from), 1).0,
        to: ReplicaId::new(NodeId(1), 1).0,
        body: body.into(),
        refusal: String::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_after_a_handshake_that_fits() {
    let mut siege = Siege::start().await;
    let (port, cluster) = (siege.port(), siege.cluster_id().await);
    let attack = move || {
        for_a_while(3, |number| {
            let class = 1 + number as i32;
            let mut dice = Dice(SEED + number);
            let mut wire = Wire::open(port);
            let from = 2 + number as u32;
            let _ = wire.send(&[open(1, EXCHANGE), data(1, &handshake(&cluster, from, class))].concat());
            for request in 0..200 {
                // Each kind of message with a tail by the dice, to each group there is and some that are not.
                let mut body = vec![1, dice.below(9) as u8];
                let length = dice.below(100) as usize;
                body.extend(dice.bytes(length));
                let messages = vec![to_replica(request, dice.below(7) as u32, from, body)];
                if wire.send(&data(1, &v1::Frame { handshake: None, messages })).is_err() {
                    break;
                }
            }
        });
    };
    siege.withstands("peer's nonsense", 48, attack).await;
    siege.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_another_one_each_time() {
    let mut siege = Siege::start().await;
    let (port, cluster) = (siege.port(), siege.cluster_id().await);
    let attack = move || {
        for_a_while(2, |number| {
            let mut wire = Wire::open(port);
            for at in 0..500 {
                let from = 2 + at + 1_000_000 * number as u32;
                let stream = 2 * at + 1;
                let opening = data(stream, &handshake(&cluster, from, 2));
                if wire.send(&[open(stream, EXCHANGE), opening].concat()).is_err() {
                    break;
                }
            }
        });
    };
    siege.withstands("peers without number", 96, attack).await;
    let (_, metrics) = siege.daemon.http("/metrics").await;
    let series = metrics.lines().filter(|line| line.starts_with("rushkv_transport")).count();
    assert!(series < 50, "peers that are none have made {series} series");
    siege.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_reads_no_answers() {
    let mut siege = Siege::start().await;
    let (port, cluster) = (siege.port(), siege.cluster_id().await);
    let attack = move || {
        let end = Instant::now() + ATTACK;
        let mut wires = Vec::new();
        for class in 1..=3 {
            let mut wire = Wire::open_with(port, &[(WINDOW, 0)]);
            wire.0.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            let _ = wire.send(&[open(1, EXCHANGE), data(1, &handshake(&cluster, 2, class))].concat());
            // Until nothing more is taken, or the time is over.
            for request in 0..4000 {
                let messages = vec![to_replica(request, 1, 2, vec![7; 64 * 1024])];
                let sent = wire.send(&data(1, &v1::Frame { handshake: None, messages }));
                if sent.is_err() || Instant::now() > end {
                    break;
                }
            }
            wires.push(wire);
        }
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
    };
    siege.withstands("peer that reads nothing", 96, attack).await;
    siege.stop();
}

/// A command that can't be read must not get into a log: whoever applied it would stop that group for good,
/// on every node.
#[tokio::test(flavor = "multi_thread")]
async fn commands_that_make_no_sense_get_into_no_log() {
    let mut siege = Siege::start().await;
    let cluster_id = siege.cluster_id().await;
    let channel = siege.daemon.channel();
    for group in 0..=4 {
        for command in [&b""[..], b"\0", b"\xFF\xFF\xFF\xFF", b"\x01", b"\x01\x01\xFF\xFF\xFF\xFF"] {
            let request =
                v1::ProposeRequest { cluster_id: cluster_id.clone(), group, command: command.into() };
            let status = PeerClient::new(channel.clone()).propose(request).await.unwrap_err();
            let error = from_status(&status, Happened::Unknown);
            let what = format!("group {group}, {command:?}: {error}");
            assert_eq!((error.reason, error.happened()), (Reason::InvalidArgument, Happened::No), "{what}");
        }
    }
    siege.withstands("commands without sense", 32, || ()).await;
    siege.daemon.stop();
    // Nothing of it is in the way of a next start.
    siege.daemon.start();
    siege.daemon.serves().await;
    siege.stop();
}

/// A peer is held to the limits of clients. fjall panics over a key of 64 KiB: a write of one that got into the log would end
/// each node that applied it, at each start again.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_a_limit_reaches_no_log_and_no_engine() {
    let mut siege = Siege::start().await;
    let cluster_id = siege.cluster_id().await;
    let mut peer = PeerClient::new(siege.daemon.channel());
    let put = |key: usize, value: usize| Op::Put {
        key: vec![b'k'; key].into(),
        value: vec![b'v'; value].into(),
        precondition: Precondition::None,
    };
    let delete = |key: usize| Op::Delete { key: vec![b'k'; key].into(), precondition: Precondition::None };
    let propose = |group, ops: &[Op]| v1::ProposeRequest {
        cluster_id: cluster_id.clone(),
        group,
        command: kv::encode_command(ops),
    };
    for group in 1..=4 {
        // An engine that nothing was written to yet looks at no key.
        peer.propose(propose(group, &[put(KEY_BYTES_MAX, 1)])).await.unwrap();
        for ops in [
            vec![put(0, 1)],
            vec![put(KEY_BYTES_MAX + 1, 1)],
            vec![put(1, 1), put(70_000, 1)],
            vec![delete(70_000)],
            vec![put(1, VALUE_BYTES_MAX + 1)],
            vec![put(1, 1); BATCH_OPERATIONS_MAX + 1],
        ] {
            let status = peer.propose(propose(group, &ops)).await.unwrap_err();
            let error = from_status(&status, Happened::Unknown);
            assert_eq!((error.reason, error.happened()), (Reason::InvalidArgument, Happened::No), "{error}");
        }
    }
    // Every node keeps what group 0 is told of members, and tells it in one message.
    let long = "n".repeat(3 << 20);
    let node = v1::Founder {
        number: 0,
        name: long,
        address: "localhost:1".into(),
        zone: String::new(),
        weight: 1,
        disk_id: "d15c".into(),
    };
    let admit = v1::AdmitRequest { node: Some(node), ..Default::default() };
    let error = from_status(&peer.admit(admit).await.unwrap_err(), Happened::Unknown);
    assert_eq!((error.reason, error.happened()), (Reason::InvalidArgument, Happened::No), "{error:.200}");
    for stale in [false, true] {
        let keys = |keys: Vec<Vec<u8>>| v1::ReadKeysRequest {
            cluster_id: cluster_id.clone(),
            keys: keys.into_iter().map(Into::into).collect(),
            stale,
        };
        for (asked, reason) in [
            (vec![vec![b'k'; 70_000]], Reason::TooLarge),
            (vec![vec![b'k'; 1], vec![b'k'; KEY_BYTES_MAX + 1]], Reason::TooLarge),
            (vec![Vec::new()], Reason::InvalidArgument),
            (vec![vec![b'k']; BATCH_OPERATIONS_MAX + 1], Reason::TooLarge),
        ] {
            let status = peer.read_keys(keys(asked)).await.unwrap_err();
            assert_eq!(from_status(&status, Happened::No).reason, reason, "{status:?}");
        }
        let range = |partitions: Vec<u32>, bound: usize| v1::ReadRangeRequest {
            cluster_id: cluster_id.clone(),
            partitions,
            start: Some(vec![b'a'; bound].into()),
            end: Some(vec![b'z'; bound].into()),
            limit: 10,
            stale,
            ..Default::default()
        };
        let read = peer.read_range(range(vec![3, 0, 1, 2, 3, 3], KEY_BYTES_MAX + 1)).await.unwrap();
        assert_eq!(read.into_inner().records.len(), 4, "each partition is asked once");
        for asked in [
            range(vec![0], 70_000),
            v1::ReadRangeRequest { start: None, ..range(vec![0], 70_000) },
            v1::ReadRangeRequest { end: None, ..range(vec![0], KEY_BYTES_MAX + 2) },
            range(vec![0; 3_000_000], 1),
            range((0..=PARTITIONS_MAX).collect(), 1),
        ] {
            let status = peer.read_range(asked).await.unwrap_err();
            assert_eq!(from_status(&status, Happened::No).reason, Reason::TooLarge, "{status:?}");
        }
    }
    siege.withstands("requests over the limits", 96, || ()).await;
    siege.daemon.stop();
    siege.daemon.start();
    siege.daemon.serves().await;
    siege.stop();
}
