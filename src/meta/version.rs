//! Which commands and formats a cluster may use: those that every member knows, so that its nodes can be
//! upgraded one by one. The version grows when the last of them is new enough, and never shrinks.

use super::command::Command;
use super::state::State;
use crate::types::Epoch;

impl Command {
    /// The cluster version from which on the command may be proposed: an older member that met it in its log
    /// could not go on.
    pub fn needed_version(&self) -> u32 {
        match self {
            Command::Form(_)
            | Command::Created(_)
            | Command::UpdateMember { .. }
            | Command::Join(_)
            | Command::Leave(_)
            | Command::Moved { .. }
            | Command::Renew { .. }
            | Command::Rebuild { .. }
            | Command::Removed(_)
            | Command::Seal(_)
            | Command::Unseal
            | Command::SetVersion { .. } => 1,
        }
    }
}

impl State {
    /// Whether the command may be proposed here; why not, else. Before the founding, the state itself refuses.
    pub fn allows(&self, command: &Command) -> Result<(), String> {
        let needed = command.needed_version();
        if !self.is_formed() || needed <= self.version {
            return Ok(());
        }
        Err(format!(
            "this needs cluster version {needed}, and the cluster is at {}: it rises by itself once every node \
             runs a program that knows it",
            self.version
        ))
    }

    /// Whether a node that knows versions up to `known` can be a member; why not, else.
    pub(super) fn admits_version(&self, known: u32) -> Result<(), String> {
        match known >= self.version {
            true => Ok(()),
            false => Err(format!(
                "the cluster is at version {}, and the node's program knows {known} at most: install a newer one",
                self.version
            )),
        }
    }

    /// Members that were not asked may have come in since `epoch`.
    pub(super) fn raise_version(&mut self, version: u32, epoch: Epoch) -> Result<(), String> {
        if version <= self.version {
            return Ok(());
        }
        if epoch != self.epoch {
            return Err(format!(
                "the cluster is at epoch {}, no longer at {epoch}: ask its members again",
                self.epoch
            ));
        }
        self.version = version;
        self.epoch.0 += 1;
        Ok(())
    }

    /// The version that the cluster can take now, if it is a newer one: the newest that every member knows.
    /// `known`: what each member said, `None` if one did not answer.
    pub fn next_version(&self, known: &[Option<u32>]) -> Option<u32> {
        let all: Option<Vec<u32>> = known.iter().copied().collect();
        let newest = all?.into_iter().min()?;
        (known.len() == self.members.len() && newest > self.version).then_some(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::{Form, Member, MemberState, number_members};
    use crate::types::NodeId;

    fn state() -> State {
        let member = |name: &str| Member {
            name: name.into(),
            address: format!("{name}:8080"),
            zone: String::new(),
            weight: 1,
            disk_id: format!("disk-{name}"),
            state: MemberState::Active,
        };
        let mut state = State::default();
        let form = Form {
            cluster_id: "c".into(),
            cluster_name: "rushkv".into(),
            replicas: 3,
            partitions: 4,
            members: number_members(["a", "b", "c"].map(member)),
        };
        state.apply(Command::Form(form)).unwrap();
        state
    }

    #[test]
    fn the_version_rises_once_every_member_knows_the_next() {
        let state = state();
        assert_eq!(state.next_version(&[Some(1); 3]), None);
        assert_eq!(state.next_version(&[Some(2), Some(3), Some(2)]), Some(2));
        assert_eq!(state.next_version(&[Some(2), Some(1), Some(2)]), None, "one is old");
        assert_eq!(state.next_version(&[Some(2), None, Some(2)]), None, "one is silent");
        assert_eq!(state.next_version(&[Some(2), Some(2)]), None, "one was not asked");
    }

    #[test]
    fn a_command_waits_for_the_version_that_it_needs() {
        let mut state = state();
        let command = Command::Leave(NodeId(1));
        assert_eq!(state.allows(&command), Ok(()));
        state.version = 0;
        assert!(state.allows(&command).unwrap_err().contains("needs cluster version 1"));
        assert_eq!(State::default().allows(&command), Ok(()), "the state itself refuses before the founding");
    }

    #[test]
    fn an_old_program_is_not_let_in() {
        let mut state = state();
        assert_eq!(state.admits_version(1), Ok(()));
        state.version = 2;
        assert!(state.admits_version(1).unwrap_err().contains("install a newer one"));
    }
}
