//! Every limit, with its reason. What is over a limit gets an error that names the limit.

use std::time::Duration;

/// Longest key, in bytes. Keys are kept whole in engine indexes and block boundaries; etcd and TiKV
/// users stay far below.
pub const KEY_BYTES_MAX: usize = 4 * 1024;

/// Largest value, in bytes. A value crosses the log, the network and the engine as one piece; larger
/// ones would make neighbours on the same log wait.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;

/// Largest request or answer message that we make, in bytes: gRPC libraries of other languages refuse
/// messages over 4 MiB by default, and a message needs room around its values.
pub const MESSAGE_BYTES_MAX: usize = 3 * 1024 * 1024;

/// Largest message that is decoded at all, in bytes: one MiB above [`MESSAGE_BYTES_MAX`], so that a
/// batch slightly too large gets our error, which names the limit, not the transport's.
pub const DECODE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Most operations in one batch. Each takes some 100 bytes beside its key and value while it waits.
pub const BATCH_OPERATIONS_MAX: usize = 4096;

/// A scan's message is sent when it holds this many bytes; a smaller one answers sooner, a larger one
/// gains nothing measurable.
pub const SCAN_MESSAGE_BYTES: usize = 512 * 1024;

/// Most records in one message of a scan.
pub const SCAN_MESSAGE_RECORDS: usize = 1024;

/// Concurrent HTTP/2 streams on one connection.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 1024;

/// A connection's flow-control window, in bytes: what one client can make us hold before it is read. It is
/// over [`REQUEST_BYTES_MAX`], for as long as the calls that it is for are not run.
pub const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// Open connections on the gRPC port; the next one is closed at once.
pub const CONNECTIONS_MAX: usize = 10_000;

/// Largest HTTP/2 header list, in bytes.
pub const HEADER_BYTES_MAX: u32 = 16 * 1024;

/// The longest a call may take, whatever deadline its client asks for.
pub const CALL_DEADLINE_MAX: Duration = Duration::from_secs(60);

/// A call's deadline when its client names none.
pub const CALL_DEADLINE_DEFAULT: Duration = Duration::from_secs(10);

/// The original's Go clients give up after 5 s: they are answered before.
pub const ORIGINAL_CALL_DEADLINE: Duration = Duration::from_secs(4);

/// Longest name of a node, zone or cluster, in bytes: they stand in every metric and status line.
pub const NAME_BYTES_MAX: usize = 64;

/// Longest host name, in bytes (RFC 1035).
pub const HOST_BYTES_MAX: usize = 253;

/// Longest address of a node, in bytes: a host, maybe in brackets, and a port.
pub const ADDRESS_BYTES_MAX: usize = HOST_BYTES_MAX + "[]:65535".len();

/// Longest id of a cluster or a disk, in bytes; what is drawn has 32.
pub const ID_BYTES_MAX: usize = 64;

/// Most partitions of a cluster.
pub const PARTITIONS_MAX: u32 = 4096;

/// Most nodes of a cluster: each is a replica of group 0, whose leader sends it every change itself.
pub const MEMBERS_MAX: usize = 256;

/// Most copies of a partition. More than seven make every write wait for four disks and buy nothing
/// that a second cluster would not.
pub const REPLICAS_MAX: u32 = 7;

/// Largest weight; 128 points on the ring each, so that a heavy node still fits in memory.
pub const WEIGHT_MAX: u32 = 1000;

/// Bytes of proposals that may wait in one group; the next one is refused as overloaded.
pub const GROUP_PENDING_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Proposals that may wait in one group.
pub const GROUP_PENDING_MAX: usize = 16 * 1024;

/// Largest payload of one log entry, in bytes: a batch with everything in one partition.
pub const ENTRY_BYTES_MAX: usize = DECODE_BYTES_MAX;

/// Calls under way on one gRPC port; the next one is refused as overloaded. Each holds a task and its
/// request; far more than the groups let wait would only wait longer.
pub const CALLS_MAX: usize = 32 * 1024;

/// Bytes of requests under way on one gRPC port, decoded or not; what is over is refused as
/// overloaded. Without it, streams times messages would have no bound in memory.
pub const REQUEST_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Bytes of answers under way on one gRPC port: made, and not yet taken by their clients. Over it reads
/// are refused as overloaded. As much as requests may hold; without it, a client that opens streams and
/// reads none of them would have no bound in memory.
pub const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// An answer of which its client takes nothing for this long is cut: its stream is reset. As long as a
/// network outage that a connection may live through, and well over what a busy client pauses for.
pub const ANSWER_IDLE_MAX: Duration = Duration::from_secs(30);

/// Scans under way on one gRPC port; the next one is refused as overloaded. A page that is read occupies
/// one of the runtime's 512 blocking threads, and scans leave half of them to everything else.
pub const SCANS_MAX: usize = 256;

/// Largest message from one replica to another, in bytes: an entry of the largest size, and as much
/// again for what stands around it. What is longer (a snapshot) travels in parts.
pub const PEER_MESSAGE_BYTES_MAX: usize = 2 * ENTRY_BYTES_MAX;

/// Messages between two nodes that wait are sent together up to this many bytes: enough to be worth a
/// system call many times over, little enough to be on the wire within 10 ms at 1 Gbit/s.
pub const PEER_FRAME_BYTES: usize = 1024 * 1024;

/// Most messages in one frame between two nodes.
pub const PEER_FRAME_MESSAGES_MAX: usize = 1024;

/// Largest frame between two nodes, in bytes: one that is nearly full gets one more message, and every
/// message has ids and lengths around it (64 bytes at most).
pub const PEER_FRAME_BYTES_MAX: usize =
    PEER_FRAME_BYTES + PEER_MESSAGE_BYTES_MAX + (PEER_FRAME_MESSAGES_MAX + 1) * 64;

/// Calls of one pipeline that are worked on, or whose answers were not taken yet; a stream that has so many is not read
/// from, and our client gives it no more. More than waits in any batch of the log, and few enough that what they hold is
/// no burden.
pub const PIPELINE_CALLS_MAX: usize = 1024;

/// Pipelines of one connection. Our client library has one.
pub const PIPELINES_PER_CONNECTION_MAX: usize = 4;

/// After a larger message a pipeline ends, once all that it has read is answered: gRPC's buffers keep the size of the
/// largest message that went through them.
pub const PIPELINE_MESSAGE_BYTES_MAX: usize = 128 * 1024;
