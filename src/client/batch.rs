//! Batches: what is tried again when only some operations failed.

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::call::{Backoff, Kind, may_retry};
use super::types::{self, Record, WriteOp, WriteOutcome};
use super::{Client, consistency, kv_client};
use crate::error::{Error, Happened, Reason, Result};
use crate::proto::v1;

/// Writes `ops`. Operations that surely did not take place are tried again, together and in order, but
/// only while no outcome is unknown: a write that may yet happen must not come after one that was
/// behind it.
pub(super) async fn write(client: &Client, ops: &[WriteOp]) -> Result<Vec<Result<WriteOutcome>>> {
    let mut bytes = 0;
    for op in ops {
        types::check(op)?;
        bytes += op.key().len();
        if let WriteOp::Put { value, .. } = op {
            bytes += value.len();
        }
    }
    types::check_batch(ops.len(), bytes)?;
    if ops.is_empty() {
        return Ok(Vec::new());
    }

    let deadline = client.deadline();
    let mut backoff = Backoff::default();
    let mut outcomes: Vec<Option<Result<WriteOutcome>>> = vec![None; ops.len()];
    let mut pending: Vec<usize> = (0..ops.len()).collect();
    loop {
        let operations = pending.iter().map(|&at| ops[at].to_wire()).collect();
        let request = v1::BatchWriteRequest { operations };
        let send = |channel, request| async move { kv_client(channel).batch_write(request).await };
        let (response, endpoint) = match client.caller().call(Kind::Write, &request, deadline, send).await {
            Ok(answer) => answer,
            // In the first round it is the whole batch's failure; later, only that of what was left.
            Err(error) if pending.len() == ops.len() => return Err(error),
            Err(error) => {
                for at in pending {
                    outcomes[at] = Some(Err(error.clone()));
                }
                break;
            }
        };
        if response.outcomes.len() != pending.len() {
            return Err(miscounted(&endpoint, pending.len(), response.outcomes.len()));
        }
        let mut again = Vec::new();
        let mut unknown = false;
        for (at, outcome) in pending.into_iter().zip(response.outcomes) {
            let outcome = write_outcome(outcome, &endpoint);
            if let Err(error) = &outcome {
                unknown |= error.happened() == Happened::Unknown;
                if may_retry(Kind::Write, error) {
                    again.push(at);
                }
            }
            outcomes[at] = Some(outcome);
        }
        let pause = backoff.pause();
        if again.is_empty() || unknown || Instant::now() + pause >= deadline {
            break;
        }
        sleep(pause).await;
        pending = again;
    }
    Ok(outcomes.into_iter().map(|outcome| outcome.expect("every operation was in the first round")).collect())
}

/// Reads `keys`. What the answer had no room for is asked for again, and so is what failed for a while.
pub(super) async fn get(client: &Client, keys: &[Bytes], stale: bool) -> Result<Vec<Result<Option<Record>>>> {
    keys.iter().try_for_each(|key| types::check_key(key))?;
    types::check_batch(keys.len(), keys.iter().map(Bytes::len).sum())?;
    if keys.is_empty() {
        return Ok(Vec::new());
    }

    let deadline = client.deadline();
    let mut backoff = Backoff::default();
    let mut results: Vec<Option<Result<Option<Record>>>> = vec![None; keys.len()];
    let mut pending: Vec<usize> = (0..keys.len()).collect();
    loop {
        let request = v1::BatchGetRequest {
            keys: pending.iter().map(|&at| keys[at].clone()).collect(),
            consistency: consistency(stale).into(),
        };
        let send = |channel, request| async move { kv_client(channel).batch_get(request).await };
        let (response, endpoint) = client.caller().call(Kind::Read, &request, deadline, send).await?;
        if response.results.len() != pending.len() {
            return Err(miscounted(&endpoint, pending.len(), response.results.len()));
        }
        let before = pending.len();
        let mut again = Vec::new();
        for (at, result) in pending.into_iter().zip(response.results) {
            use v1::batch_get_result::Result as Wire;
            let result = match result.result {
                Some(Wire::Record(record)) => Ok(Some(record.into())),
                Some(Wire::NotFound(_)) => Ok(None),
                Some(Wire::Error(error)) => Err(operation_error(error, &endpoint)),
                Some(Wire::NotRead(_)) => Err(Error::new(Reason::Unavailable, "not read in time")),
                None => Err(senseless(&endpoint, "a result without content")),
            };
            if result.as_ref().is_err_and(|error| may_retry(Kind::Read, error)) {
                again.push(at);
            }
            results[at] = Some(result);
        }
        // While answers bring something, ask on at once.
        let pause = if again.len() < before { std::time::Duration::ZERO } else { backoff.pause() };
        if again.is_empty() || Instant::now() + pause >= deadline {
            break;
        }
        sleep(pause).await;
        pending = again;
    }
    Ok(results.into_iter().map(|result| result.expect("every key was in the first round")).collect())
}

fn write_outcome(outcome: v1::WriteOutcome, endpoint: &str) -> Result<WriteOutcome> {
    use v1::write_outcome::Outcome;
    match outcome.outcome {
        Some(Outcome::Put(response)) => Ok(WriteOutcome::Put(response.into())),
        Some(Outcome::Delete(response)) => Ok(WriteOutcome::Deleted(response.into())),
        Some(Outcome::Error(error)) => Err(operation_error(error, endpoint)),
        None => Err(senseless(endpoint, "an outcome without content")),
    }
}

fn operation_error(error: v1::OperationError, endpoint: &str) -> Error {
    let mut error = types::error_of(error);
    error.message = format!("{endpoint}: {}", error.message);
    error.with("endpoint", endpoint)
}

fn miscounted(endpoint: &str, asked: usize, got: usize) -> Error {
    senseless(endpoint, &format!("{got} results for {asked} operations"))
}

fn senseless(endpoint: &str, what: &str) -> Error {
    Error::new(Reason::Internal, format!("{endpoint}: the answer makes no sense: {what}"))
        .with("endpoint", endpoint)
}
