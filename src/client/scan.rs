//! Scans: one stream of records over as many server streams as it takes.
//!
//! A stream that breaks goes on from the page token of the last message received, at another endpoint
//! if need be. The caller sees records, in order, each once; only a failure that lasts longer than the
//! call timeout without a single new message ends the scan.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Streaming;

use super::call::{Backoff, Kind, may_retry, name};
use super::types::{Record, ScanOptions};
use super::{Client, kv_client};
use crate::error::{Error, Happened, Reason, Result};
use crate::limits;
use crate::proto::v1;
use crate::transport::judge;

/// A stream under way.
struct Open {
    /// Of the endpoint it comes from.
    number: usize,
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
        let mut backoff = Backoff::default();
        let mut attempts = 0;
        loop {
            let (number, error) = match self.receive(deadline).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            self.open = None;
            if !may_retry(Kind::Read, &error) {
                return Err(error);
            }
            let pool = &self.client.inner.pool;
            pool.leave(number);
            attempts += 1;
            let pause = if attempts % pool.len() == 0 { backoff.pause() } else { std::time::Duration::ZERO };
            if Instant::now() + pause >= deadline {
                return Err(error);
            }
            sleep(pause).await;
        }
    }

    async fn receive(&mut self, deadline: Instant) -> Result<(), (usize, Error)> {
        let client = self.client.clone();
        let caller = client.caller();
        let mut open = match self.open.take() {
            Some(open) => open,
            None => {
                self.request.limit = self.wanted.unwrap_or(0);
                let (number, endpoint) = caller.pool.current();
                let send = |channel, request| async move { kv_client(channel).scan(request).await };
                // The server may stream for as long as it lets anybody; we resume after that.
                let grpc_timeout = limits::CALL_DEADLINE_MAX;
                let messages = caller
                    .attempt(Kind::Read, endpoint, &self.request, grpc_timeout, deadline, &send)
                    .await
                    .map_err(|error| (number, error))?;
                Open { number, messages, fresh: true }
            }
        };
        let number = open.number;
        let fail = |error| Err((number, name(caller.pool.endpoint(number), error)));
        match timeout_at(deadline, open.messages.next()).await {
            Ok(Some(Ok(message))) => {
                // No token: the range is exhausted.
                self.exhausted = message.page_token.is_empty();
                self.request.page_token = message.page_token;
                self.page = message.records.into();
                self.open = Some(Open { fresh: false, ..open });
                Ok(())
            }
            // Nothing from here on. After a message with a token there may be more: ask again.
            Ok(None) => {
                self.exhausted = open.fresh;
                Ok(())
            }
            Ok(Some(Err(status))) => {
                fail(judge(Kind::Read, &status, Happened::No, Instant::now() >= deadline))
            }
            Err(_) => fail(Error::new(Reason::DeadlineExceeded, "no further records in time")),
        }
    }
}
