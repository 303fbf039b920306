//! Batches: what is tried again when only some operations failed.

use bytes::Bytes;
use futures_util::future::join_all;
use prost::Message as _;
use tokio::time::{Instant, sleep};

use super::call::{Backoff, Heard, Kind, may_retry};
use super::types::{self, Record, WriteOp, WriteOutcome};
use super::{Client, consistency, kv_client};
use crate::error::{Error, Happened, Reason, Result};
use crate::placement;
use crate::proto::v1;

/// One for each operation or key, in order.
type Results<T> = Vec<Result<T>>;

/// Writes `ops`: those of one leader in one call, all at once.
pub(super) async fn write(client: &Client, ops: &[WriteOp]) -> Result<Results<WriteOutcome>> {
    // All that a server would refuse it for, before it is parted: a malformed batch is refused whole.
    ops.iter().try_for_each(types::check)?;
    let whole = v1::BatchWriteRequest { operations: ops.iter().map(WriteOp::to_wire).collect() };
    types::check_batch(ops.len(), whole.encoded_len())?;

    let deadline = client.deadline();
    let parts = client.inner.routes.by_leader(ops.iter().map(|op| placement::hash(op.key())));
    let written = parts.into_iter().map(|part| async move {
        let outcomes = write_part(client, ops, &part, deadline).await;
        (part, outcomes)
    });
    together(ops.len(), join_all(written).await)
}

/// Operations that surely did not take place are tried again, together and in order, but only while no outcome is
/// unknown: a write that may yet happen must not come after one that was behind it.
async fn write_part(
    client: &Client,
    ops: &[WriteOp],
    part: &[usize],
    deadline: Instant,
) -> Result<Results<WriteOutcome>> {
    let mut backoff = Backoff::default();
    let mut outcomes: Vec<Option<Result<WriteOutcome>>> = vec![None; part.len()];
    let mut pending: Vec<usize> = (0..part.len()).collect();
    while !pending.is_empty() {
        let op = |at: usize| &ops[part[at]];
        let request =
            v1::BatchWriteRequest { operations: pending.iter().map(|&at| op(at).to_wire()).collect() };
        let send = |channel, request| async move { kv_client(channel).batch_write(request).await };
        let hashes: Vec<u64> = pending.iter().map(|&at| placement::hash(op(at).key())).collect();
        let hear = |response: &v1::BatchWriteResponse| match response.outcomes.len() == hashes.len() {
            true => Heard::of(response.outcomes.iter().map(write_failure)),
            // It is told below.
            false => Heard::Done,
        };
        let answer = client.caller().call_on_many(Kind::Write, &hashes, &request, deadline, send, hear).await;
        let (response, endpoint) = match answer {
            Ok((response, endpoint)) if response.outcomes.len() == pending.len() => (response, endpoint),
            failed => {
                let count = |response: &v1::BatchWriteResponse| response.outcomes.len();
                let error = failure(failed, pending.len(), count);
                give_up(&mut outcomes, &pending, error)?;
                break;
            }
        };
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
    Ok(all(outcomes))
}

/// Reads `keys`: those of one leader in one call, all at once.
pub(super) async fn get(client: &Client, keys: &[Bytes], stale: bool) -> Result<Results<Option<Record>>> {
    keys.iter().try_for_each(|key| types::check_key(key))?;
    types::check_batch(keys.len(), keys.iter().map(Bytes::len).sum())?;

    let deadline = client.deadline();
    let hashes = keys.iter().map(|key| placement::hash(key));
    // Any node answers what may be old.
    let parts = if stale { vec![(0..keys.len()).collect()] } else { client.inner.routes.by_leader(hashes) };
    let read = parts.into_iter().map(|part| async move {
        let results = get_part(client, keys, &part, stale, deadline).await;
        (part, results)
    });
    together(keys.len(), join_all(read).await)
}

/// What the answer had no room for is asked for again, and so is what failed for a while.
async fn get_part(
    client: &Client,
    keys: &[Bytes],
    part: &[usize],
    stale: bool,
    deadline: Instant,
) -> Result<Results<Option<Record>>> {
    let mut backoff = Backoff::default();
    let mut results: Vec<Option<Result<Option<Record>>>> = vec![None; part.len()];
    let mut pending: Vec<usize> = (0..part.len()).collect();
    while !pending.is_empty() {
        let key = |at: usize| &keys[part[at]];
        let request = v1::BatchGetRequest {
            keys: pending.iter().map(|&at| key(at).clone()).collect(),
            consistency: consistency(stale).into(),
        };
        let send = |channel, request| async move { kv_client(channel).batch_get(request).await };
        let hashes: Vec<u64> = match stale {
            true => Vec::new(),
            false => pending.iter().map(|&at| placement::hash(key(at))).collect(),
        };
        let hear = |response: &v1::BatchGetResponse| match response.results.len() == pending.len() {
            true => Heard::of(response.results.iter().map(read_failure)),
            false => Heard::Done,
        };
        let answer = client.caller().call_on_many(Kind::Read, &hashes, &request, deadline, send, hear).await;
        let (response, endpoint) = match answer {
            Ok((response, endpoint)) if response.results.len() == pending.len() => (response, endpoint),
            failed => {
                let count = |response: &v1::BatchGetResponse| response.results.len();
                let error = failure(failed, pending.len(), count);
                give_up(&mut results, &pending, error)?;
                break;
            }
        };
        let before = pending.len();
        let mut again = Vec::new();
        for (at, result) in pending.into_iter().zip(response.results) {
            use v1::batch_get_result::Result as Wire;
            let result = match result.result {
                Some(Wire::Record(record)) => Ok(Some(record.into())),
                Some(Wire::NotFound(_)) => Ok(None),
                Some(Wire::Error(error)) => Err(operation_error(error, &endpoint)),
                Some(Wire::NotRead(_)) => Err(not_read()),
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
    Ok(all(results))
}

/// What came of all parts, in order. `parts`: the places of each, and what came of them.
///
/// # Errors
/// Every part failed as a whole. If one of them may have taken place, that is what is told.
fn together<T: Clone>(count: usize, parts: Vec<(Vec<usize>, Result<Results<T>>)>) -> Result<Results<T>> {
    let mut together: Vec<Option<Result<T>>> = vec![None; count];
    let mut answered = parts.is_empty();
    let mut worst: Option<Error> = None;
    for (part, results) in parts {
        match results {
            Ok(results) => {
                answered = true;
                for (at, result) in part.into_iter().zip(results) {
                    together[at] = Some(result);
                }
            }
            Err(error) => {
                for at in part {
                    together[at] = Some(Err(error.clone()));
                }
                let is_worse = |worst: &Error| worst.happened() == Happened::No;
                if worst.as_ref().is_none_or(is_worse) {
                    worst = Some(error);
                }
            }
        }
    }
    match worst {
        Some(error) if !answered => Err(error),
        _ => Ok(all(together)),
    }
}

/// A call failed as a whole: that is the failure of what is pending.
///
/// # Errors
/// So did every one before it of this part: the part failed as a whole.
fn give_up<T: Clone>(results: &mut [Option<Result<T>>], pending: &[usize], error: Error) -> Result<()> {
    if results.iter().all(Option::is_none) {
        return Err(error);
    }
    for &at in pending {
        results[at] = Some(Err(error.clone()));
    }
    Ok(())
}

fn all<T>(results: Vec<Option<Result<T>>>) -> Results<T> {
    results
        .into_iter()
        .map(|result| result.expect("every one is in a part, and was in its first round"))
        .collect()
}

/// Why an answer is none: the call failed, or it has not as many results as were `asked` for.
fn failure<R>(answer: Result<(R, String)>, asked: usize, count: impl Fn(&R) -> usize) -> Error {
    match answer {
        Ok((response, endpoint)) => {
            senseless(&endpoint, &format!("{} results for {asked} operations", count(&response)))
        }
        Err(error) => error,
    }
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

/// How an operation failed, if it did.
fn write_failure(outcome: &v1::WriteOutcome) -> Option<Error> {
    use v1::write_outcome::Outcome;
    match &outcome.outcome {
        Some(Outcome::Put(_) | Outcome::Delete(_)) => None,
        Some(Outcome::Error(error)) => Some(types::error_of(error.clone())),
        None => Some(Error::new(Reason::Internal, "an outcome without content")),
    }
}

fn read_failure(result: &v1::BatchGetResult) -> Option<Error> {
    use v1::batch_get_result::Result as Wire;
    match &result.result {
        Some(Wire::Record(_) | Wire::NotFound(_)) => None,
        Some(Wire::Error(error)) => Some(types::error_of(error.clone())),
        Some(Wire::NotRead(_)) => Some(not_read()),
        None => Some(Error::new(Reason::Internal, "a result without content")),
    }
}

fn not_read() -> Error {
    Error::new(Reason::Unavailable, "not read in time")
}

fn operation_error(error: v1::OperationError, endpoint: &str) -> Error {
    let mut error = types::error_of(error);
    error.message = format!("{endpoint}: {}", error.message);
    error.with("endpoint", endpoint)
}

fn senseless(endpoint: &str, what: &str) -> Error {
    Error::new(Reason::Internal, format!("{endpoint}: the answer makes no sense: {what}"))
        .with("endpoint", endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_of_which_nothing_was_answered_may_have_taken_place_if_any_part_may() {
        let failed = |reason| Err(Error::new(reason, "said the server"));
        let parts = |reasons: [Reason; 3]| -> Vec<(Vec<usize>, Result<Results<()>>)> {
            (0..).zip(reasons).map(|(at, reason)| (vec![2 - at], failed(reason))).collect()
        };
        use Reason::{OutcomeUnknown, Overloaded, Unavailable};
        let told = |reasons| together(3, parts(reasons)).unwrap_err().reason;
        assert_eq!(told([Unavailable, Overloaded, Unavailable]), Unavailable);
        assert_eq!(told([Unavailable, OutcomeUnknown, Unavailable]), OutcomeUnknown);

        let mut parts = parts([Unavailable, OutcomeUnknown, Unavailable]);
        parts[0].1 = Ok(vec![Ok(())]);
        let results = together(3, parts).unwrap();
        let reasons: Vec<_> = results.into_iter().map(|one| one.map_err(|error| error.reason)).collect();
        assert_eq!(reasons, [Err(Unavailable), Err(OutcomeUnknown), Ok(())]);
        assert_eq!(together::<()>(0, Vec::new()), Ok(Vec::new()));
    }
}
