//! Who speaks with whom, settled before the first message: cluster, both nodes, class and versions.
//!
//! A node that moved, was wiped or belongs elsewhere is found out here, and no message of it is read.
//! There is no secret in it: it guards against mistakes, not against an enemy.

use std::fmt;

use crate::proto::v1::{self, MessageClass};
use crate::raft::Class;
use crate::types::NodeId;

/// The oldest and the newest version of the protocol between nodes that this program speaks. Two nodes
/// speak the newest that both know; the range lets them be upgraded one by one.
pub const PROTOCOL_MIN: u32 = 1;
/// See [`PROTOCOL_MIN`].
pub const PROTOCOL_MAX: u32 = 1;

/// Longest cluster id that is looked at, in bytes; ours are far shorter.
const CLUSTER_ID_BYTES_MAX: usize = 256;

/// Who this node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Local {
    pub cluster_id: String,
    pub number: NodeId,
}

/// A handshake that was found to fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Accepted {
    pub from: NodeId,
    pub class: Class,
    /// The version that both sides speak.
    pub protocol: u32,
}

/// Why one does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// One of a few fixed words: a label of the metrics.
    pub reason: &'static str,
    pub why: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// Every word that [`Refusal::reason`] can be.
pub(super) const REASONS: [&str; 6] = ["no_cluster", "malformed", "cluster", "node", "protocol", "class"];

/// What this node says first to `to`.
pub(super) fn offer(local: &Local, to: NodeId, class: Class) -> v1::Handshake {
    v1::Handshake {
        cluster_id: local.cluster_id.clone(),
        from_node: local.number.0,
        to_node: to.0,
        class: class_to_wire(class).into(),
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
    }
}

/// Checks what the other side said first. Any node of this cluster may speak, also one that this node
/// does not know as a member: one that was away for long may know none of today's members, and learns
/// of them only from those.
pub(super) fn check(local: &Local, theirs: &v1::Handshake) -> Result<Accepted, Refusal> {
    let refuse = |reason, why| Err(Refusal { reason, why });
    let own = local.number;
    let from = NodeId(theirs.from_node);
    if theirs.cluster_id.is_empty() || theirs.cluster_id.len() > CLUSTER_ID_BYTES_MAX {
        return refuse("malformed", format!("{from} names no cluster; {own} is in {}", local.cluster_id));
    }
    if theirs.cluster_id != local.cluster_id {
        let why = format!("{from} is in cluster {}, {own} in {}", theirs.cluster_id, local.cluster_id);
        return refuse("cluster", why);
    }
    if theirs.to_node != own.0 {
        return refuse("node", format!("{from} means {}, and this is {own}", NodeId(theirs.to_node)));
    }
    if from == own {
        return refuse("node", format!("{from} says that it is {own}, which is this node itself"));
    }
    let (min, max) = (theirs.protocol_min, theirs.protocol_max);
    let protocol = max.min(PROTOCOL_MAX);
    if min > max || protocol < min.max(PROTOCOL_MIN) {
        let why =
            format!("{from} speaks versions {min} to {max}, {own} {PROTOCOL_MIN} to {PROTOCOL_MAX}: upgrade");
        return refuse("protocol", why);
    }
    match class_from_wire(theirs.class) {
        Some(class) => Ok(Accepted { from, class, protocol }),
        None => {
            let why = format!("{from} sends messages of class {}, which {own} does not know", theirs.class);
            refuse("class", why)
        }
    }
}

/// Checks what a node answered to our handshake: that it is the one that was meant.
pub(super) fn check_answer(
    local: &Local,
    peer: NodeId,
    class: Class,
    theirs: &v1::Handshake,
) -> Result<Accepted, Refusal> {
    let accepted = check(local, theirs)?;
    if accepted.from != peer {
        let why = format!("{} was dialled, and {} answered", peer, accepted.from);
        return Err(Refusal { reason: "node", why });
    }
    if accepted.class != class {
        let why = format!("{peer} answers in class {}, and {} was asked", name(accepted.class), name(class));
        return Err(Refusal { reason: "class", why });
    }
    Ok(accepted)
}

/// All classes; their order is that of [`index`].
pub(super) const CLASSES: [Class; 3] = [Class::Control, Class::Append, Class::Snapshot];

/// A class's place in [`CLASSES`].
pub(super) fn index(class: Class) -> usize {
    match class {
        Class::Control => 0,
        Class::Append => 1,
        Class::Snapshot => 2,
    }
}

/// As metrics and messages write it.
pub(super) fn name(class: Class) -> &'static str {
    ["control", "append", "snapshot"][index(class)]
}

fn class_to_wire(class: Class) -> MessageClass {
    match class {
        Class::Control => MessageClass::Control,
        Class::Append => MessageClass::Append,
        Class::Snapshot => MessageClass::Snapshot,
    }
}

fn class_from_wire(class: i32) -> Option<Class> {
    match MessageClass::try_from(class).ok()? {
        MessageClass::Unspecified => None,
        MessageClass::Control => Some(Class::Control),
        MessageClass::Append => Some(Class::Append),
        MessageClass::Snapshot => Some(Class::Snapshot),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(number: u32) -> Local {
        Local { cluster_id: "c1".to_string(), number: NodeId(number) }
    }

    #[test]
    fn an_offer_is_accepted_by_the_one_that_it_means() {
        for class in CLASSES {
            let offer = offer(&local(1), NodeId(2), class);
            let accepted = check(&local(2), &offer).unwrap();
            assert_eq!(accepted, Accepted { from: NodeId(1), class, protocol: PROTOCOL_MAX });
        }
    }

    /// Something done to a handshake that fitted.
    type Change = fn(&mut v1::Handshake);

    #[test]
    fn every_field_is_checked_and_the_refusal_names_both_sides() {
        let cases: [(&str, Change, &[&str]); 9] = [
            ("malformed", |h| h.cluster_id.clear(), &["n1", "n2", "c1"]),
            ("malformed", |h| h.cluster_id = "x".repeat(10_000), &["n1", "n2", "c1"]),
            ("cluster", |h| h.cluster_id = "other".to_string(), &["n1", "n2", "c1", "other"]),
            ("node", |h| h.to_node = 3, &["n1", "n2", "n3"]),
            ("node", |h| h.from_node = 2, &["n2", "itself"]),
            (
                "protocol",
                |h| (h.protocol_min, h.protocol_max) = (PROTOCOL_MAX + 1, 9),
                &["n1", "n2", "2 to 9"],
            ),
            ("protocol", |h| (h.protocol_min, h.protocol_max) = (0, PROTOCOL_MIN - 1), &["n1", "0 to 0"]),
            ("protocol", |h| (h.protocol_min, h.protocol_max) = (5, 1), &["5 to 1"]),
            ("class", |h| h.class = 77, &["n1", "n2", "77"]),
        ];
        for (reason, change, words) in cases {
            let mut offer = offer(&local(1), NodeId(2), Class::Append);
            change(&mut offer);
            let refusal = check(&local(2), &offer).unwrap_err();
            assert_eq!(refusal.reason, reason, "{refusal}");
            assert!(REASONS.contains(&refusal.reason));
            assert!(words.iter().all(|word| refusal.why.contains(word)), "{refusal}");
        }
        let mut none = offer(&local(1), NodeId(2), Class::Append);
        none.class = MessageClass::Unspecified.into();
        assert_eq!(check(&local(2), &none).unwrap_err().reason, "class");
    }

    #[test]
    fn later_versions_are_met_where_the_ranges_overlap() {
        let mut offer = offer(&local(1), NodeId(2), Class::Append);
        offer.protocol_max = PROTOCOL_MAX + 5;
        assert_eq!(check(&local(2), &offer).unwrap().protocol, PROTOCOL_MAX);
    }

    #[test]
    fn an_answer_of_another_node_or_class_is_refused() {
        let answer = offer(&local(2), NodeId(1), Class::Append);
        assert!(check_answer(&local(1), NodeId(2), Class::Append, &answer).is_ok());
        assert_eq!(check_answer(&local(1), NodeId(3), Class::Append, &answer).unwrap_err().reason, "node");
        assert_eq!(check_answer(&local(1), NodeId(2), Class::Control, &answer).unwrap_err().reason, "class");
    }
}
