//! A founding: drawn by the first node, written down by every other one, and replaced only if it can't take place. The order
//! of the steps, and who goes on with them, is in [`super::forming`].

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use super::Node;
use super::forming::{Dialled, ask, member};
use super::identity::Identity;
use super::open::{draw_id, refused};
use super::promise::PREPARED;
use super::seat::Beginning;
use crate::error::{Error, Reason, Result};
use crate::limits::MEMBERS_MAX;
use crate::proto::v1::{self, Founder, Founding};
use crate::types::{NodeId, ReplicaId};
use crate::{crash_point, meta};

/// How long the members of another founding may take, so that who asks for it is answered within a Prepare's time.
const RELEASED_WITHIN: Duration = Duration::from_secs(1);

impl Node {
    /// Draws a founding, or takes up the one that this node is prepared for, and has everybody prepare.
    pub(super) async fn found(
        self: &Arc<Node>,
        founders: Vec<Founder>,
        replaces: Option<String>,
        dialled: &mut Dialled,
    ) -> Result<()> {
        let preparing = self.preparing.lock().await;
        let mine = self.seat().and_then(|seat| seat.founding.clone());
        let (founding, replaces) = match mine {
            Some(mine) if mine.founders == founders => (mine, replaces),
            other => {
                if let Some(mine) = &other {
                    self.check_released(mine, &founders).await?;
                }
                let founding = Founding { cluster_id: draw_id()?, settings: Some(self.settings()), founders };
                tracing::info!(cluster_id = founding.cluster_id, "founding a cluster");
                crash_point::reached("forming.drawn");
                let before = other.map(|mine| mine.cluster_id).or(replaces);
                self.prepare_for(founding.clone()).await?;
                crash_point::reached("forming.first-prepared");
                (founding, before)
            }
        };
        drop(preparing);
        self.have_all_prepared(&founding, replaces.unwrap_or_default(), dialled).await?;
        crash_point::reached("forming.all-prepared");
        let _preparing = self.preparing.lock().await;
        let seat = self.seat().ok_or_else(|| refused("the seat was lost while founding"))?;
        if seat.founding.as_ref() != Some(&founding) {
            return Err(refused(format!("another founding has taken the place of {}", founding.cluster_id)));
        }
        let first = voters(&founding);
        seat.meta.initialize(&first).await.map_err(refused)?;
        crash_point::reached("forming.initialized");
        Ok(())
    }

    async fn have_all_prepared(
        &self,
        founding: &Founding,
        replaces: String,
        dialled: &mut Dialled,
    ) -> Result<()> {
        let others = founding.founders.iter().filter(|one| one.disk_id != self.data_dir.disk_id());
        let asked = others.map(|one| {
            let channel = self.dialled(dialled, &one.address);
            let request = v1::PrepareRequest { founding: Some(founding.clone()), replaces: replaces.clone() };
            async move {
                ask(channel, |mut peer| async move { peer.prepare(request).await })
                    .await
                    .map_err(|error| refused(format!("\"{}\" to be prepared: {error}", one.name)))?;
                crash_point::reached("forming.another-prepared");
                Ok(())
            }
        });
        join_all(asked.collect::<Vec<_>>()).await.into_iter().collect()
    }

    /// Whether the founding that this node is prepared for has not taken place, as far as can be asked: at the address of each that it
    /// names (of now, for one of `founders`) somebody answers, and nobody there has a log of it or is a member of its cluster.
    /// Somebody with another disk counts: the one that took part is lost, or has moved where nobody knows of.
    async fn check_released(&self, mine: &Founding, founders: &[Founder]) -> Result<()> {
        let others = mine.founders.iter().filter(|one| one.disk_id != self.data_dir.disk_id());
        let asked = others.map(|one| async move {
            let id = &mine.cluster_id;
            let refuse = |why: String| Err(Error::new(Reason::ClusterRefused, why));
            let now = founders.iter().find(|other| other.disk_id == one.disk_id).unwrap_or(one);
            match timeout(RELEASED_WITHIN, self.hello(&now.address)).await {
                // Whoever answers there: a member that came after it knows of it, too.
                Ok(Ok(other)) if other.cluster_id == *id || (other.has_log && other.prepared_id == *id) => {
                    refuse(format!("the founding {id} has taken place: {} has its log", now.address))
                }
                Ok(Ok(_)) => Ok(()),
                Ok(Err(_)) | Err(_) => refuse(format!(
                    "\"{}\" is prepared for the founding {id}, which may have taken place, since \"{}\" ({}) does not \
                     answer: start that one; if it is gone for good, start this one with an empty data_dir",
                    self.options.name, one.name, now.address
                )),
            }
        });
        join_all(asked).await.into_iter().collect()
    }

    /// A Prepare that came from the founding's first node.
    pub(super) async fn accept_founding(self: &Arc<Node>, founding: Founding, replaces: &str) -> Result<()> {
        // One at a time: two foundings must not both find that there is none.
        let _one = self.preparing.lock().await;
        let refuse = |why: String| Err(Error::new(Reason::ClusterRefused, why));
        let name = &self.options.name;
        let me = self.data_dir.disk_id();
        if !founding.founders.iter().any(|one| one.disk_id == me && one.name == *name) {
            return refuse(format!("the founding does not know \"{name}\" with its data directory"));
        }
        check_founding(&founding).or_else(refuse)?;
        if founding.settings.as_ref() != Some(&self.settings()) {
            return refuse(format!("the settings of the founding are not those of \"{name}\""));
        }
        if let Some(seat) = self.seat() {
            let Some(mine) = &seat.founding else {
                return refuse(format!("\"{name}\" is a member of cluster {}", seat.identity.cluster_id));
            };
            if *mine == founding {
                return Ok(());
            }
            if mine.cluster_id != replaces {
                return refuse(format!("\"{name}\" is prepared for the founding {}", mine.cluster_id));
            }
            if seat.meta.is_initialized().await.map_err(refused)? {
                return refuse(format!("\"{name}\" has a log of the founding {}", mine.cluster_id));
            }
            self.check_released(mine, &founding.founders).await?;
        } else if self.joining.is_some() {
            return refuse(format!("\"{name}\" is on its way into another cluster"));
        } else if self.options.peers.is_empty() {
            return refuse(format!("\"{name}\" has no peers: it looks for no cluster"));
        }
        crash_point::reached("forming.asked-to-prepare");
        self.prepare_for(founding).await?;
        crash_point::reached("forming.prepared");
        Ok(())
    }

    /// Writes the founding down, durably, and takes the seat that it gives.
    pub(super) async fn prepare_for(self: &Arc<Node>, founding: Founding) -> Result<()> {
        let me = self.data_dir.disk_id();
        let Some(mine) = founding.founders.iter().find(|one| one.disk_id == me).cloned() else {
            return Err(refused("the founding that this directory is prepared for does not name it"));
        };
        let (dir, content) = (self.data_dir.path().to_path_buf(), founding.clone());
        let written = tokio::task::spawn_blocking(move || PREPARED.write(&dir, &content)).await;
        written.map_err(|error| Error::new(Reason::Internal, error.to_string()))?.map_err(refused)?;
        let identity = Identity {
            cluster_id: founding.cluster_id.clone(),
            number: NodeId(mine.number),
            name: self.options.name.clone(),
            disk_id: me.to_string(),
            founded_alone: false,
        };
        let known = founding.founders.clone();
        self.take_seat(identity, Some(founding), Beginning::Others, &known).await?;
        Ok(())
    }
}

/// What is written down of a founding, and becomes group 0's state.
fn check_founding(founding: &Founding) -> std::result::Result<(), String> {
    meta::check_id("the founding's id", &founding.cluster_id)?;
    if founding.founders.len() > MEMBERS_MAX {
        return Err(format!("{} founders are more than {MEMBERS_MAX}", founding.founders.len()));
    }
    founding.founders.iter().try_for_each(|one| meta::check_member(&member(one.clone())))
}

/// Group 0's first voters.
fn voters(founding: &Founding) -> Vec<ReplicaId> {
    let members = founding.founders.iter().map(|one| (NodeId(one.number), member(one.clone())));
    let mut state = meta::State::default();
    state.members = members.collect();
    meta::group0_voters(&state).into_iter().map(meta::group0_replica).collect()
}
