//! Scans: the partitions of one node give a page together, the pages of all nodes are merged by key.
//!
//! A page ends where the first of its sources ends that has more: behind that key the others' records
//! would not be all there are.

use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Bound;

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use tokio::time::Instant;

use super::calls::{GROUP, Place, is_worth_repeating};
use super::{Consistency, Deadline, Node, ScanPage, ScanQuery};
use crate::error::{Error, Reason, Result};
use crate::kv;
use crate::limits::{SCAN_MESSAGE_BYTES, SCAN_MESSAGE_RECORDS};
use crate::raft::{Space, SpaceView};
use crate::storage::{self, Order};
use crate::types::{GroupId, NodeId, PartitionId};

/// How often a page of a scan begins anew because its view grew too old.
const VIEW_TRIES: usize = 3;

/// Between two attempts while a partition has no leader.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

impl Node {
    /// One page of a scan: up to `query.limit` records, `limits::SCAN_MESSAGE_RECORDS` records or
    /// about `limits::SCAN_MESSAGE_BYTES`, whichever comes first.
    pub async fn scan(&self, query: ScanQuery, deadline: Deadline) -> Result<ScanPage> {
        let _call = self.enter()?;
        let cluster = self.formed()?;
        let partitions: Vec<PartitionId> = cluster.state.partitions.keys().copied().collect();
        loop {
            match self.scan_all(&partitions, &query, deadline).await {
                Err(error) if is_worth_repeating(&error) && Instant::now() + PAUSE < deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                done => return done,
            }
        }
    }

    async fn scan_all(
        &self,
        partitions: &[PartitionId],
        query: &ScanQuery,
        deadline: Deadline,
    ) -> Result<ScanPage> {
        let mut here = Vec::new();
        let mut there: BTreeMap<_, Vec<PartitionId>> = BTreeMap::new();
        for partition in partitions {
            let place = match query.consistency {
                Consistency::Linearizable => self.leader_of(partition.group())?,
                Consistency::Stale => self.holder_of(*partition)?,
            };
            match place {
                Place::Here => here.push(*partition),
                Place::There(node) => there.entry(node).or_default().push(*partition),
            }
        }
        let remote = there
            .into_iter()
            .map(|(node, partitions)| async move { self.scan_at(node, partitions, query, deadline).await });
        let local = async {
            match here.is_empty() {
                true => Ok(ScanPage { records: Vec::new(), more: false }),
                false => self.scan_here(&here, query, deadline).await,
            }
        };
        let (local, remote) = tokio::join!(local, join_all(remote));
        let mut pages = vec![local?];
        for page in remote {
            pages.push(page?);
        }
        Ok(merge(pages, query.reverse, query.limit))
    }

    async fn scan_at(
        &self,
        node: NodeId,
        partitions: Vec<PartitionId>,
        query: &ScanQuery,
        deadline: Deadline,
    ) -> Result<ScanPage> {
        let result = self.scan_there(node, partitions.clone(), query, deadline).await;
        if let Err(error) = &result
            && is_worth_repeating(error)
        {
            // It says which partition it does not lead, unless it was not reached at all.
            let about = error.metadata.get(GROUP).and_then(|number| number.parse().ok()).map(GroupId);
            for group in partitions.iter().map(|partition| partition.group()) {
                if about.is_none_or(|about| about == group) {
                    self.note_leader(group, Some(Place::There(node)), error);
                }
            }
        }
        result
    }

    /// A page over replicas of this node.
    pub(super) async fn scan_here(
        &self,
        partitions: &[PartitionId],
        query: &ScanQuery,
        deadline: Deadline,
    ) -> Result<ScanPage> {
        for _ in 0..VIEW_TRIES {
            let reads = partitions.iter().map(|partition| async move {
                let space = self.readable(*partition, query.consistency, deadline).await?;
                Ok::<_, Error>((*partition, space))
            });
            let spaces = try_join_all(reads).await?;
            let asked = query.clone();
            let page = tokio::task::spawn_blocking(move || scan_page(&spaces, &asked))
                .await
                .map_err(|error| Error::new(Reason::Internal, error.to_string()))?;
            match page {
                Err((_, kv::ReadError::Storage(storage::Error::ViewExpired { .. }))) => {}
                Err((partition, error)) => return Err(self.doubted(partition, &error)),
                Ok(page) => return Ok(page),
            }
        }
        Err(Error::new(
            Reason::Overloaded,
            "the scan's view expired repeatedly under the load of writes; ask for smaller pages",
        ))
    }
}

/// One page of many: see the module.
fn merge(pages: Vec<ScanPage>, reverse: bool, limit: usize) -> ScanPage {
    let before = |a: &Bytes, b: &Bytes| if reverse { a > b } else { a < b };
    let mut end: Option<Bytes> = None;
    for page in &pages {
        if !page.more {
            continue;
        }
        // A page with more has at least one record.
        if let Some((last, _)) = page.records.last()
            && end.as_ref().is_none_or(|end| before(last, end))
        {
            end = Some(last.clone());
        }
    }
    let mut more = end.is_some();
    let mut records: Vec<(Bytes, kv::Record)> = pages.into_iter().flat_map(|page| page.records).collect();
    records.sort_by(|(a, _), (b, _)| if reverse { b.cmp(a) } else { a.cmp(b) });
    if let Some(end) = end {
        records.retain(|(key, _)| !before(&end, key));
    }
    let mut bytes = 0;
    let fitting = records.iter().take(limit.min(SCAN_MESSAGE_RECORDS)).take_while(|(key, record)| {
        let fits = bytes < SCAN_MESSAGE_BYTES;
        bytes += key.len() + record.value.len();
        fits
    });
    let fitting = fitting.count();
    more |= fitting < records.len();
    records.truncate(fitting);
    ScanPage { records, more }
}

/// Merges the partitions' records in key order.
fn scan_page(
    spaces: &[(PartitionId, Space)],
    query: &ScanQuery,
) -> std::result::Result<ScanPage, (PartitionId, kv::ReadError)> {
    let views: Vec<(PartitionId, SpaceView)> = spaces
        .iter()
        .map(|(partition, space)| Ok((*partition, space.view().map_err(|error| (*partition, error.into()))?)))
        .collect::<std::result::Result<_, (PartitionId, kv::ReadError)>>()?;
    let start = query.start.clone().map_or(Bound::Unbounded, Bound::Included);
    let end = query.end.clone().map_or(Bound::Unbounded, Bound::Excluded);
    let order = if query.reverse { Order::Descending } else { Order::Ascending };
    let mut sources: Vec<_> = views
        .iter()
        .map(|(partition, view)| (*partition, kv::scan(view, (start.clone(), end.clone()), order)))
        .collect();

    let mut heads = BinaryHeap::new();
    for (index, (partition, source)) in sources.iter_mut().enumerate() {
        if let Some(record) = source.next() {
            let (key, record) = record.map_err(|error| (*partition, error))?;
            heads.push(Head { key, record, index, reverse: query.reverse });
        }
    }
    let limit = query.limit.min(SCAN_MESSAGE_RECORDS);
    let mut records = Vec::new();
    let mut bytes = 0;
    while records.len() < limit && bytes < SCAN_MESSAGE_BYTES {
        let Some(Head { key, mut record, index, .. }) = heads.pop() else {
            break;
        };
        let (partition, source) = &mut sources[index];
        if let Some(next) = source.next() {
            let (key, record) = next.map_err(|error| (*partition, error))?;
            heads.push(Head { key, record, index, reverse: query.reverse });
        }
        if query.keys_only {
            record.value = Bytes::new();
        }
        bytes += key.len() + record.value.len();
        records.push((key, record));
    }
    Ok(ScanPage { records, more: !heads.is_empty() })
}

/// The next record of one partition. The heap's greatest is the one to hand out next.
struct Head {
    key: Bytes,
    record: kv::Record,
    index: usize,
    reverse: bool,
}

impl Ord for Head {
    fn cmp(&self, other: &Head) -> std::cmp::Ordering {
        let by_key = self.key.cmp(&other.key);
        if self.reverse { by_key } else { by_key.reverse() }
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Head) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Head) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Head {}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(keys: &[&str], more: bool) -> ScanPage {
        let record = |key: &&str| {
            let record = kv::Record { value: Bytes::new(), version: 1, create_revision: 1, mod_revision: 1 };
            (Bytes::copy_from_slice(key.as_bytes()), record)
        };
        ScanPage { records: keys.iter().map(record).collect(), more }
    }

    fn keys(page: &ScanPage) -> Vec<&str> {
        page.records.iter().map(|(key, _)| std::str::from_utf8(key).unwrap()).collect()
    }

    #[test]
    fn pages_are_merged_up_to_where_all_of_them_are_known() {
        let merged =
            merge(vec![page(&["a", "d", "g"], true), page(&["b", "c"], true), page(&["e"], false)], false, 9);
        assert_eq!((keys(&merged), merged.more), (vec!["a", "b", "c"], true));
        let merged = merge(vec![page(&["g", "d"], true), page(&["e", "a"], false)], true, 9);
        assert_eq!((keys(&merged), merged.more), (vec!["g", "e", "d"], true));
        let merged = merge(vec![page(&["a"], false), page(&[], false), page(&["b"], false)], false, 9);
        assert_eq!((keys(&merged), merged.more), (vec!["a", "b"], false));
        let merged = merge(vec![page(&["a", "c"], false), page(&["b"], false)], false, 2);
        assert_eq!((keys(&merged), merged.more), (vec!["a", "b"], true));
    }
}
