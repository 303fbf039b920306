//! The end of a replica: its state goes, leaving a tombstone, and then its log (rule 8).

use tokio::sync::oneshot;

use super::group::{Group, OpenError};
use super::machine::Machine;
use super::store::Store;
use crate::types::LogKey;
use crate::{runtime, wal};

impl<M: Machine> Group<M> {
    /// Stops the replica for good and forgets its log and state, but for a tombstone.
    pub async fn destroy(&self) -> Result<(), OpenError> {
        self.shutdown().await;
        let (store, key, space) = (self.store.clone(), self.key, self.space.get());
        // The tombstone first: without a log, but with it, the replica is not begun again.
        runtime::spawn_blocking(move || store.destroy(key, space))
            .await
            .map_err(|error| failed(key, &error))?
            .map_err(|error| failed(key, &error))?;
        destroy_log(&self.log).await
    }
}

/// Ends what a crash broke off between the tombstone and the end of the log: without this, a log that
/// nobody reads would be copied forward for ever. To be called before any replica is opened.
pub async fn finish_destroying(store: &Store, wal: &wal::Wal) -> Result<(), OpenError> {
    let logs = wal.keys();
    let Some(any) = logs.first().copied() else { return Ok(()) };
    for key in store.tombstones().map_err(|error| failed(any, &error))? {
        if logs.contains(&key) {
            tracing::info!(%key, "destroying the log that a destroyed replica left behind");
            destroy_log(&wal.log(key)).await?;
        }
    }
    Ok(())
}

/// Returns once that is durable.
async fn destroy_log(log: &wal::Log) -> Result<(), OpenError> {
    let key = log.key();
    let (done, durable) = oneshot::channel();
    let destroyed = log.destroy(Box::new(move |result| {
        // If nobody waits any more, the process ends.
        let _ = done.send(result);
    }));
    destroyed.await.map_err(|error| failed(key, &error))?;
    durable.await.map_err(|error| failed(key, &error))?.map_err(|error| failed(key, &error))
}

fn failed(key: LogKey, error: &dyn std::fmt::Display) -> OpenError {
    OpenError { key, problem: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::super::cluster::{Cluster, key};
    use super::super::space::Space;
    use super::super::tests::{SLOW, SLOW_BEGUN, open};
    use super::super::types::StoredMembership;
    use super::*;
    use crate::storage::Kind;

    /// What was being applied or installed when a replica was destroyed must not bring it back.
    async fn late(kind: Kind) {
        let mut cluster = Cluster::new(kind, 1).await;
        cluster.write("something ").await;
        let group = cluster.group(1).clone();
        let (space, applied) = (group.space.get(), group.status().applied);
        group.destroy().await.unwrap();
        let disk = cluster.take_disk(1).await;
        let newer = Space::new(disk.store.engine().clone(), disk.store.new_space());
        disk.store.flip(key(1), &space, &newer, applied, &StoredMembership::default()).unwrap();
        drop((group, space, newer));
        disk.store.engine().close().unwrap();
        disk.wal.close().unwrap();
        drop(disk);
        let disk = open(&cluster.path(1), kind, true);
        assert_eq!((disk.store.unopened(), disk.store.tombstones().unwrap()), (vec![], vec![key(1)]));
    }

    #[tokio::test]
    async fn a_destroyed_replica_stays_destroyed_on_fjall() {
        late(Kind::Fjall).await;
    }

    #[tokio::test]
    async fn a_destroyed_replica_stays_destroyed_on_sled() {
        late(Kind::Sled).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_is_applied_any_more_once_it_has_stopped() {
        let cluster = Cluster::new(Kind::Fjall, 1).await;
        cluster.write("something ").await;
        let group = cluster.group(1).clone();
        let proposing = group.clone();
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
        tokio::spawn(async move { proposing.propose(bytes::Bytes::from_static(SLOW), deadline).await });
        while !SLOW_BEGUN.load(std::sync::atomic::Ordering::SeqCst) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        group.shutdown().await;
        let record = group.space.get().get(b"journal").unwrap().unwrap();
        assert!(record.ends_with(SLOW), "it is being applied yet: {record:?}");
    }

    async fn broken_off(kind: Kind) {
        let mut cluster = Cluster::new(kind, 1).await;
        cluster.write("something ").await;
        let group = cluster.group(1).clone();
        let disk = cluster.take_disk(1).await;
        // The process dies after the tombstone.
        disk.store.destroy(key(1), group.space.get()).unwrap();
        assert_eq!(disk.wal.keys(), [key(1)]);
        finish_destroying(&disk.store, &disk.wal).await.unwrap();
        assert_eq!(disk.wal.keys(), []);
        // Nothing is left to do, and nothing else is touched.
        let other = LogKey { replica: crate::types::ReplicaId(2), ..key(1) };
        cluster.start_on(2, disk).await;
        cluster.group(2).initialize(&[other.replica]).await.unwrap();
        let disk = cluster.take_disk(2).await;
        finish_destroying(&disk.store, &disk.wal).await.unwrap();
        assert_eq!(disk.wal.keys(), [other]);
    }

    #[tokio::test]
    async fn a_destruction_that_was_broken_off_is_finished_on_fjall() {
        broken_off(Kind::Fjall).await;
    }

    #[tokio::test]
    async fn a_destruction_that_was_broken_off_is_finished_on_sled() {
        broken_off(Kind::Sled).await;
    }
}
