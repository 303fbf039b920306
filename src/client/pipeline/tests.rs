//! What calls that share a stream come to when it does not go as it should.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures_util::Stream as _;

use tonic::Status;

use super::{CALLS_ALONE, Call, Phase, Pipeline, Requests};
use crate::client::testing::{Act, Fake, Plan};
use crate::client::{Client, Precondition};
use crate::error::{Happened, Reason};
use crate::proto::v1;

fn client(endpoints: &str) -> Client {
    Client::builder().endpoint(endpoints).timeout(Duration::from_millis(1500)).connections(1).build().unwrap()
}

async fn with_pipelines(plan: Plan) -> Fake {
    let fake = Fake::with(plan).await;
    fake.state.has_pipelines.store(true, Ordering::SeqCst);
    fake
}

/// A client of it whose pipeline is open.
async fn opened(fake: &Fake) -> Client {
    let client = client(&fake.address);
    warm(&client, fake).await;
    client
}

async fn warm(client: &Client, fake: &Fake) {
    for _ in 0..=CALLS_ALONE {
        client.get("warm").await.unwrap();
    }
    for _ in 0..4000 {
        let open = client.inner.pool.all().iter().any(|one| one.name == fake.address && one.has_pipeline());
        if open {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("no pipeline was opened");
}

/// Does its work, but for writes.
fn writes(then: fn() -> Act) -> Plan {
    Box::new(move |call, _| if call == "put" { then() } else { Act::Work })
}

#[tokio::test]
async fn after_a_few_calls_they_share_a_stream() {
    let fake = with_pipelines(Box::new(|_, _| Act::Work)).await;
    let client = opened(&fake).await;
    for n in 1..=100 {
        assert_eq!(client.put("k", "v").await.unwrap().version, n);
    }
    assert_eq!(client.get("k").await.unwrap().unwrap().version, 100);
    let conflict = client.put_if("k", "x", Precondition::Absent).await.unwrap_err();
    assert_eq!(
        (conflict.reason, conflict.metadata["current_version"].as_str()),
        (Reason::PreconditionFailed, "100")
    );
    assert!(conflict.message.starts_with(&fake.address), "{conflict}");
    assert!(client.delete("k").await.unwrap().existed);
    let client = client.with_timeout(Duration::from_secs(30));
    let many = (0..500).map(|n| client.put(format!("k{n}"), "v"));
    for written in futures_util::future::join_all(many).await {
        assert_eq!(written.unwrap().version, 1);
    }
    assert_eq!(fake.count("pipeline"), 1);
}

#[tokio::test]
async fn a_server_without_them_is_asked_once() {
    let fake = Fake::start().await;
    let client = client(&fake.address);
    for n in 1..=100 {
        assert_eq!(client.put("k", "v").await.unwrap().version, n);
    }
    assert_eq!(fake.count("pipeline"), 1);
}

#[tokio::test]
async fn one_that_breaks_leaves_its_writes_unknown() {
    let fake = with_pipelines(writes(|| Act::Break)).await;
    let client = opened(&fake).await;
    let start = Instant::now();
    let error = client.put("k", "v").await.unwrap_err();
    assert_eq!((error.reason, error.happened()), (Reason::OutcomeUnknown, Happened::Unknown), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(1), "it does not wait for its deadline");
    assert_eq!(fake.count("put"), 1);
}

#[tokio::test]
async fn its_reads_are_made_again_elsewhere() {
    let plan: Plan =
        Box::new(|call, number| if number > 30 && call == "get" { Act::Break } else { Act::Work });
    let (fake, other) = (with_pipelines(plan).await, Fake::start().await);
    let client = client(&format!("{},{}", fake.address, other.address));
    warm(&client, &fake).await;
    while fake.calls().len() <= 30 {
        client.put("k", "v").await.unwrap();
    }
    assert_eq!(client.get("k").await.unwrap(), None, "from the other");
}

#[tokio::test]
async fn what_a_server_that_stops_has_not_read_is_made_again() {
    let fake = with_pipelines(Box::new(|_, _| Act::Work)).await;
    fake.state.closed_before.store(4, Ordering::SeqCst);
    let client = opened(&fake).await;
    for n in 1..=10 {
        assert_eq!(client.put("k", "v").await.unwrap().version, n, "once each");
    }
}

/// It is as well as before: nobody turns away from it.
#[tokio::test]
async fn what_a_server_has_not_read_goes_to_it_alone() {
    let (fake, other) = (with_pipelines(Box::new(|_, _| Act::Work)).await, Fake::start().await);
    fake.state.closed_before.store(4, Ordering::SeqCst);
    let client = client(&format!("{},{}", fake.address, other.address));
    warm(&client, &fake).await;
    let many = (0..30).map(|n| client.put(format!("k{n}"), "v"));
    for written in futures_util::future::join_all(many).await {
        assert_eq!(written.unwrap().version, 1);
    }
    assert_eq!((fake.count("put"), other.count("put")), (30, 0));
    assert!(client.inner.pool.all()[0].is_worth_asking());
}

#[tokio::test]
async fn one_that_is_not_answered_in_time_is_given_up() {
    let fake = with_pipelines(writes(|| Act::Hang)).await;
    let client = opened(&fake).await.with_timeout(Duration::from_secs(1));
    let error = client.put("k", "v").await.unwrap_err();
    assert_eq!(error.reason, Reason::OutcomeUnknown, "{error:?}");
    assert_eq!(client.inner.pool.all()[0].waiting(), 1, "the server is not done with it");
    assert_eq!(client.get("k").await.unwrap(), None, "the others go on");
}

#[tokio::test]
async fn an_ambiguous_write_is_not_made_again() {
    let fake = with_pipelines(writes(|| Act::WorkThenFail(Status::unavailable("proxy")))).await;
    let client = opened(&fake).await;
    let error = client.put("k", "v").await.unwrap_err();
    assert_eq!(error.happened(), Happened::Unknown, "{error:?}");
    assert_eq!(fake.count("put"), 1);
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn one_that_is_dropped_ends_with_the_answer_to_its_last_call() {
    let pipeline = Pipeline::default();
    let shared = pipeline.0.clone();
    (shared.lock().phase, shared.lock().session) = (Phase::Open, 1);
    let get = || Call::Get(v1::GetRequest { key: "k".into(), consistency: 0 });
    let asked = pipeline.start(get, 1, Duration::from_secs(1), || unreachable!()).unwrap();
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = Waker::from(woken.clone());
    let mut requests = Requests(shared.clone(), 1);
    let mut next = || Pin::new(&mut requests).poll_next(&mut Context::from_waker(&waker));
    assert!(matches!(next(), Poll::Ready(Some(request)) if request.id == 1));
    drop(asked);
    drop(pipeline);
    assert!(next().is_pending(), "the server has not answered");
    assert!(!woken.0.load(Ordering::SeqCst));
    assert!(shared.remove(1).is_some());
    assert!(woken.0.load(Ordering::SeqCst) && matches!(next(), Poll::Ready(None)));
}
