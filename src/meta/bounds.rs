//! How much a command may bring into group 0's state: every node keeps that in memory and on its disk, writes it whole
//! at each change, and tells it in one message. Looked at where a command is proposed, and not where it is applied: bounds may
//! change, and what is in a log stays.

use super::command::{Command, Form, Join};
use super::state::{Member, Sealed};
use crate::limits::{ADDRESS_BYTES_MAX, ID_BYTES_MAX, MEMBERS_MAX, NAME_BYTES_MAX};

/// # Errors
/// If something in it is longer than any configuration makes it, or is none of what a name or an id is made of.
pub fn check_bounds(command: &Command) -> Result<(), String> {
    match command {
        Command::Form(Form { cluster_id, cluster_name, members, .. }) => {
            check_id("the cluster's id", cluster_id)?;
            check_name("the cluster's name", cluster_name)?;
            check_count("the founding", "members", members.len())?;
            members.values().try_for_each(check_member)
        }
        Command::Join(Join { name, address, zone, disk_id, .. }) => check_words(name, address, zone, disk_id),
        Command::UpdateMember { address, zone, .. } => check_place(address, zone),
        Command::Moved { holders, .. } => check_count("the report", "holders", holders.len()),
        Command::Seal(Sealed { cluster_id, addresses }) => {
            check_id("the cluster's id", cluster_id)?;
            check_count("the seal", "addresses", addresses.len())?;
            addresses.iter().try_for_each(|address| check_address(address))
        }
        Command::Created(_)
        | Command::Leave(_)
        | Command::Renew { .. }
        | Command::Rebuild { .. }
        | Command::Removed(_)
        | Command::Unseal
        | Command::SetVersion { .. } => Ok(()),
    }
}

/// The same for a member to be.
pub fn check_member(member: &Member) -> Result<(), String> {
    let Member { name, address, zone, disk_id, weight: _, state: _ } = member;
    check_words(name, address, zone, disk_id)
}

/// The id of a cluster or a disk: what is drawn is hexadecimal.
pub fn check_id(what: &str, id: &str) -> Result<(), String> {
    check_length(what, id, ID_BYTES_MAX)?;
    match id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        true => Ok(()),
        false => Err(format!("{what} is none: {id:?}")),
    }
}

fn check_words(name: &str, address: &str, zone: &str, disk_id: &str) -> Result<(), String> {
    check_name("the node's name", name)?;
    check_id("the disk's id", disk_id)?;
    check_place(address, zone)
}

fn check_place(address: &str, zone: &str) -> Result<(), String> {
    check_address(address)?;
    if zone.is_empty() { Ok(()) } else { check_name("the zone", zone) }
}

fn check_name(what: &str, name: &str) -> Result<(), String> {
    check_length(what, name, NAME_BYTES_MAX)?;
    match name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')) {
        true => Ok(()),
        false => {
            Err(format!("{what} has something in it that is no letter, digit, '.', '_' or '-': {name:?}"))
        }
    }
}

fn check_address(address: &str) -> Result<(), String> {
    check_length("the address", address, ADDRESS_BYTES_MAX)
}

fn check_length(what: &str, text: &str, max: usize) -> Result<(), String> {
    match text.len() {
        0 => Err(format!("{what} is empty")),
        size if size > max => Err(format!("{what} has {size} bytes; the limit is {max}")),
        _ => Ok(()),
    }
}

fn check_count(what: &str, of: &str, count: usize) -> Result<(), String> {
    match count > MEMBERS_MAX {
        true => Err(format!("{what} has {count} {of}; the limit is {MEMBERS_MAX}")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{GroupId, NodeId, ReplicaId};

    fn join(name: &str, address: &str, zone: &str, disk_id: &str) -> Command {
        let [name, address, zone, disk_id] = [name, address, zone, disk_id].map(str::to_string);
        Command::Join(Join { name, address, zone, weight: 1, disk_id, version_max: 1 })
    }

    #[test]
    fn what_a_configuration_allows_is_within_them_and_nothing_longer() {
        let (name, host) = ("n".repeat(NAME_BYTES_MAX), "h".repeat(253));
        let disk = "0123456789abcdef".repeat(2);
        assert_eq!(check_bounds(&join(&name, &format!("{host}:65535"), &name, &disk)), Ok(()));
        assert_eq!(check_bounds(&join("n1", "[fd00::1]:8080", "", &disk)), Ok(()));
        let long = "x".repeat(4 * 1024 * 1024);
        for (command, why) in [
            (join(&long, "a:1", "", &disk), "the node's name has 4194304 bytes; the limit is 64"),
            (join("", "a:1", "", &disk), "the node's name is empty"),
            (join("a\nnumber = 7", "a:1", "", &disk), "the node's name has something in it"),
            (join("n1", &long, "", &disk), "the address has 4194304 bytes"),
            (join("n1", "", "", &disk), "the address is empty"),
            (join("n1", "a:1", &long, &disk), "the zone has 4194304 bytes"),
            (join("n1", "a:1", "", &long), "the disk's id has 4194304 bytes"),
            (join("n1", "a:1", "", "a\nb"), "the disk's id is none"),
        ] {
            let error = check_bounds(&command).unwrap_err();
            assert!(error.starts_with(why), "{error:.200}");
        }
    }

    #[test]
    fn lists_are_no_longer_than_a_cluster_is_wide() {
        let moved = |count: usize| {
            let holders = vec![ReplicaId::new(NodeId(1), 1); count];
            Command::Moved { group: GroupId(1), holders, index: 1 }
        };
        let seal = |count: usize, id: &str| {
            Command::Seal(Sealed { cluster_id: id.into(), addresses: vec!["a:1".into(); count] })
        };
        assert_eq!(check_bounds(&moved(MEMBERS_MAX)), Ok(()));
        assert_eq!(check_bounds(&seal(MEMBERS_MAX, "c0ffee")), Ok(()));
        for command in [moved(MEMBERS_MAX + 1), seal(MEMBERS_MAX + 1, "c0ffee"), seal(1, ""), seal(1, "a b")]
        {
            assert!(check_bounds(&command).is_err(), "{command:.200?}");
        }
    }
}
