//! Scans: one stream of records over as many server streams as it takes.
//!
//! A stream that breaks goes on from the page token of the last message received, at another endpoint
//! if need be. The caller sees records, in order, each once; only a failure that lasts longer than the
//! call timeout without a single new message ends the scan.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use tokio::time::{Instant, timeout_at};
use tonic::Streaming;

use super::call::{Kind, Rounds, may_retry, name};
use super::pool::Endpoint;
use super::types::{Record, ScanOptions};
use super::{Client, kv_client};
use crate::error::{Error, Happened, Reason, Result};
use crate::limits;
use crate::proto::v1;
use crate::transport::{Failed, judge};

/// A stream under way.
struct Open {
    /// Where it comes from.
    endpoint: Arc<Endpoint>,
    messages: Streaming<v1::ScanResponse>,
    /// Whether anything came yet.
    fresh: bool,
}

struct Scan {
    client: Client,
    request: v1::ScanRequest,
    /// Records still wanted; `None`: all.
    wanted: Option<u64>,
    open: Option<Open>,
    page: VecDeque<v1::Record>,
    /// The server has said that there is no more.
    exhausted: bool,
    failed: bool,
}

pub(super) fn scan(
    client: Client,
    options: ScanOptions,
) -> impl Stream<Item = Result<Record>> + Send + 'static {
    let request = v1::ScanRequest {
        prefix: Bytes::new(),
        start: options.start,
        end: options.end,
        limit: 0,
        page_token: Bytes::new(),
        keys_only: options.keys_only,
        reverse: options.reverse,
        consistency: super::consistency(options.stale).into(),
    };
    let state = Scan {
        client,
        request,
        wanted: options.limit,
        open: None,
        page: VecDeque::new(),
        exhausted: false,
        failed: false,
    };
    stream::unfold(state, |mut scan| async move { scan.next().await.map(|item| (item, scan)) }).fuse()
}

impl Scan {
    async fn next(&mut self) -> Option<Result<Record>> {
        if self.failed || self.wanted == Some(0) {
            return None;
        }
        while self.page.is_empty() {
            if self.exhausted {
                return None;
            }
            if let Err(error) = self.next_page().await {
                self.failed = true;
                return Some(Err(error));
            }
        }
        if let Some(wanted) = &mut self.wanted {
            *wanted -= 1;
        }
        self.page.pop_front().map(|record| Ok(record.into()))
    }

    /// Receives one message, over a new stream if there is none or it breaks.
    async fn next_page(&mut self) -> Result<()> {
        let deadline = Instant::now() + self.client.timeout;
        let client = self.client.clone();
        let mut rounds = Rounds::new(&client.inner);
        loop {
            let open = match self.open.take() {
                Some(open) => open,
                None => {
                    let endpoint = rounds.next(None, deadline).await?;
                    match self.ask(endpoint.clone(), deadline).await {
                        Ok(open) => open,
                        Err(failed) => {
                            give_up_or_leave(&client, &mut rounds, endpoint, failed)?;
                            continue;
                        }
                    }
                }
            };
            let endpoint = open.endpoint.clone();
            match self.receive(open, deadline).await {
                Ok(()) => return Ok(()),
                Err(failed) => give_up_or_leave(&client, &mut rounds, endpoint, failed)?,
            }
        }
    }

    async fn ask(&self, endpoint: Arc<Endpoint>, deadline: Instant) -> Result<Open, Failed> {
        let request = v1::ScanRequest { limit: self.wanted.unwrap_or(0), ..self.request.clone() };
        let send = |channel, request| async move { kv_client(channel).scan(request).await };
        // The server may stream for as long as it lets anybody; we resume after that.
        let grpc_timeout = limits::CALL_DEADLINE_MAX;
        let caller = self.client.caller();
        let answer = caller.attempt(Kind::Read, &endpoint, &request, grpc_timeout, deadline, &send).await?;
        Ok(Open { endpoint, messages: answer.into_inner(), fresh: true })
    }

    async fn receive(&mut self, mut open: Open, deadline: Instant) -> Result<(), Failed> {
        let (error, answered) = match timeout_at(deadline, open.messages.next()).await {
            Ok(Some(Ok(message))) => {
                // No token: the range is exhausted.
                self.exhausted = message.page_token.is_empty();
                self.request.page_token = message.page_token;
                self.page = message.records.into();
                self.open = Some(Open { fresh: false, ..open });
                return Ok(());
            }
            // Nothing from here on. After a message with a token there may be more: ask again.
            Ok(None) => {
                self.exhausted = open.fresh;
                return Ok(());
            }
            Ok(Some(Err(status))) => {
                (judge(Kind::Read, &status, Happened::No, Instant::now() >= deadline), true)
            }
            Err(_) => (Error::new(Reason::DeadlineExceeded, "no further records in time"), false),
        };
        let error = name(&open.endpoint, error);
        Err(Failed { error, answered, has_left: true, metadata: tonic::metadata::MetadataMap::new() })
    }
}

fn give_up_or_leave(
    client: &Client,
    rounds: &mut Rounds<'_>,
    endpoint: Arc<Endpoint>,
    failed: Failed,
) -> Result<()> {
    if !may_retry(Kind::Read, &failed.error) {
        return Err(failed.error);
    }
    client.inner.pool.leave(&endpoint);
    rounds.failed(endpoint, failed);
    Ok(())
}
