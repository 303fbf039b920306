//! Every turn of the lifecycle, over a node that does what the test says and a socket that a service
//! manager could hold.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{Notify, mpsc};

use super::super::notify::tests::Manager;
use super::*;
use crate::error::{Error, Reason};

#[derive(Default)]
struct Fake {
    problems: Mutex<Vec<Problem>>,
    failure: Notify,
    anew: Notify,
    shutdown_hangs: AtomicBool,
    shutdown_fails: AtomicBool,
    shutdowns: AtomicUsize,
}

impl Work for Fake {
    fn problems(&self) -> Vec<Problem> {
        self.problems.lock().unwrap().clone()
    }

    async fn failed(&self) -> String {
        self.failure.notified().await;
        "fsync of the log failed".to_string()
    }

    async fn starts_anew(&self) {
        self.anew.notified().await;
    }

    async fn probe(&self) -> Result<()> {
        match self.shutdowns.load(Ordering::SeqCst) {
            0 => Ok(()),
            _ => std::future::pending().await,
        }
    }

    async fn shutdown(&self, _deadline: Deadline) -> Result<()> {
        self.shutdowns.fetch_add(1, Ordering::SeqCst);
        if self.shutdown_hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        match self.shutdown_fails.load(Ordering::SeqCst) {
            true => Err(Error::new(Reason::Internal, "no space")),
            false => Ok(()),
        }
    }

    async fn status(&self) -> String {
        "serving 8 partitions, 8 led".to_string()
    }
}

impl Requests for mpsc::Receiver<Request> {
    async fn next(&mut self) -> Request {
        match self.recv().await {
            Some(request) => request,
            None => std::future::pending().await,
        }
    }
}

/// A node under way.
struct Run {
    manager: Manager,
    node: Arc<Fake>,
    requests: mpsc::Sender<Request>,
    /// Lets the node open.
    opened: Arc<Notify>,
    /// Lets the calls under way finish, once the servers were told to stop.
    calls_done: Arc<Notify>,
    /// Ends the servers unasked.
    break_servers: Arc<Notify>,
    reloads: Arc<AtomicUsize>,
    task: JoinHandle<Ended>,
}

fn start() -> Run {
    start_with(Ok(()), Arc::default())
}

fn start_with(open: Result<(), String>, node: Arc<Fake>) -> Run {
    let manager = Manager::new();
    let (requests, receiver) = mpsc::channel(4);
    let [opened, calls_done, break_servers]: [Arc<Notify>; 3] = Default::default();
    let reloads = Arc::new(AtomicUsize::new(0));
    let lifecycle = Lifecycle {
        notifier: manager.notifier.clone(),
        watchdog: Some(Duration::from_millis(40)),
        requests: receiver,
        pace: Pace {
            ready_poll: Duration::from_millis(2),
            extend: Duration::from_millis(20),
            start_max: Duration::from_secs(60),
            status: Duration::from_millis(10),
            drain: Duration::from_secs(2),
            shutdown: Duration::from_secs(2),
        },
    };
    let task = {
        let (node, opened, reloads) = (node.clone(), opened.clone(), reloads.clone());
        let (calls_done, break_servers) = (calls_done.clone(), break_servers.clone());
        let opening = async move {
            opened.notified().await;
            open.map(|()| node)
        };
        let serve = move |_node, stop| {
            tokio::spawn(async move {
                tokio::select! {
                    () = stopped(stop) => {}
                    () = break_servers.notified() => return Err("accept failed".to_string()),
                }
                calls_done.notified().await;
                Ok(())
            })
        };
        let reload = move || {
            reloads.fetch_add(1, Ordering::SeqCst);
            "reloaded: log.level".to_string()
        };
        tokio::spawn(lifecycle.run(opening, serve, reload))
    };
    Run { manager, node, requests, opened, calls_done, break_servers, reloads, task }
}

impl Run {
    async fn until_ready(&self) {
        self.opened.notify_one();
        self.manager.wait_for("READY=1").await;
    }

    async fn ask(&self, request: Request) {
        self.requests.send(request).await.unwrap();
    }

    async fn ended(self) -> (Ended, String) {
        let ended = timeout(Duration::from_secs(30), self.task).await.expect("it ends").unwrap();
        (ended, self.manager.seen())
    }
}

#[tokio::test]
async fn it_is_ready_only_once_nothing_keeps_it_from_serving() {
    let node = Arc::new(Fake::default());
    let problem = |message: &str| Problem { reason: "no_leader", message: message.to_string() };
    *node.problems.lock().unwrap() = vec![problem("p3 has no leader"), problem("p4 has no leader")];
    let run = start_with(Ok(()), node);
    run.manager.wait_for("EXTEND_TIMEOUT_USEC=60000").await;
    run.manager.wait_for("STATUS=opening the data directory").await;
    run.opened.notify_one();
    run.manager.wait_for("STATUS=waiting: p3 has no leader (and 1 more)").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!run.manager.seen().contains("READY=1"), "{}", run.manager.seen());
    run.node.problems.lock().unwrap().clear();
    run.manager.wait_for("READY=1\nSTATUS=serving 8 partitions, 8 led\n").await;
    run.manager.wait_for("WATCHDOG=1").await;
    *run.node.problems.lock().unwrap() = vec![problem("p5 has no leader")];
    run.manager.wait_for("STATUS=degraded: p5 has no leader\n").await;
    run.node.problems.lock().unwrap().clear();
    // The watchdog's messages may come in between.
    let degraded = run.manager.seen().find("STATUS=degraded").unwrap();
    let is_serving = async {
        while !run.manager.seen()[degraded..].contains("STATUS=serving") {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(30), is_serving).await.expect("it serves again");
    assert_eq!(run.manager.seen().matches("READY=1").count(), 1);
    run.task.abort();
}

/// Else a node on a low disk could not be helped by deletes: its start would never end.
#[tokio::test]
async fn what_is_mended_while_it_serves_does_not_keep_it_from_being_ready() {
    let node = Arc::new(Fake::default());
    let low = Problem { reason: "DISK_LOW", message: "3 MiB are free".into() };
    *node.problems.lock().unwrap() = vec![low];
    let run = start_with(Ok(()), node);
    run.opened.notify_one();
    run.manager.wait_for("READY=1\nSTATUS=degraded: 3 MiB are free\n").await;
    run.task.abort();
}

#[tokio::test]
async fn a_full_disk_is_told_with_the_way_out() {
    let full = std::io::Error::from_raw_os_error(28).to_string();
    let run = start_with(Err(format!("can't fill next.new: {full}")), Arc::default());
    run.opened.notify_one();
    let (ended, _) = run.ended().await;
    let Ended::Failed(why) = ended else { panic!("{ended:?}") };
    assert!(why.contains("free or add space"), "{why}");
}

#[tokio::test]
async fn a_stop_finishes_calls_before_the_node() {
    let run = start();
    run.until_ready().await;
    run.ask(Request::Stop("SIGTERM")).await;
    run.manager.wait_for("STOPPING=1").await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(run.node.shutdowns.load(Ordering::SeqCst), 0, "a call is under way");
    run.calls_done.notify_one();
    let node = run.node.clone();
    let (ended, seen) = run.ended().await;
    assert_eq!(ended, Ended::Stopped);
    assert_eq!(node.shutdowns.load(Ordering::SeqCst), 1);
    assert!(seen.ends_with("STATUS=stopped\n"), "{seen}");
}

#[tokio::test]
async fn a_call_that_never_ends_is_cut_off_at_the_deadline() {
    let run = start();
    run.until_ready().await;
    run.ask(Request::Stop("SIGINT")).await;
    assert_eq!(run.ended().await.0, Ended::Stopped);
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let run = start();
    run.until_ready().await;
    run.node.shutdown_hangs.store(true, Ordering::SeqCst);
    run.ask(Request::Stop("SIGTERM")).await;
    run.manager.wait_for("STOPPING=1").await;
    run.ask(Request::Reload).await;
    run.ask(Request::Stop("SIGTERM")).await;
    assert_eq!(run.ended().await.0, Ended::Forced);
}

#[tokio::test]
async fn a_shutdown_that_hangs_or_fails_is_said() {
    for (hangs, fails, why) in [(true, false, "not done after 2 s"), (false, true, "no space")] {
        let run = start();
        run.until_ready().await;
        run.node.shutdown_hangs.store(hangs, Ordering::SeqCst);
        run.node.shutdown_fails.store(fails, Ordering::SeqCst);
        run.calls_done.notify_one();
        run.ask(Request::Stop("SIGTERM")).await;
        match run.ended().await.0 {
            Ended::Failed(reason) => assert!(reason.contains(why), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn the_watchdog_is_fed_until_the_checkpoint_is_done() {
    let run = start();
    run.until_ready().await;
    run.node.shutdown_hangs.store(true, Ordering::SeqCst);
    run.calls_done.notify_one();
    run.ask(Request::Stop("SIGTERM")).await;
    run.manager.wait_for("STATUS=stopping: checkpointing\nWATCHDOG=1\nWATCHDOG=1\nWATCHDOG=1\n").await;
    run.task.abort();
}

#[tokio::test]
async fn a_node_that_cannot_go_on_ends_without_a_checkpoint() {
    let run = start();
    run.until_ready().await;
    run.node.failure.notify_one();
    let node = run.node.clone();
    let (ended, seen) = run.ended().await;
    assert_eq!(ended, Ended::Failed("fsync of the log failed".to_string()));
    assert_eq!(node.shutdowns.load(Ordering::SeqCst), 0);
    assert!(seen.contains("STATUS=fsync of the log failed"), "{seen}");
}

#[tokio::test]
async fn a_node_that_fails_while_it_stops_is_a_failure_too() {
    let run = start();
    run.until_ready().await;
    run.ask(Request::Stop("SIGTERM")).await;
    run.manager.wait_for("STOPPING=1").await;
    run.node.failure.notify_one();
    assert_eq!(run.ended().await.0, Ended::Failed("fsync of the log failed".to_string()));
}

#[tokio::test]
async fn a_node_that_starts_anew_is_closed_and_no_stop_is_told() {
    let run = start();
    run.until_ready().await;
    run.node.anew.notify_one();
    run.calls_done.notify_one();
    let node = run.node.clone();
    let (ended, seen) = run.ended().await;
    assert_eq!(ended, Ended::Again);
    assert_eq!(node.shutdowns.load(Ordering::SeqCst), 1);
    assert!(!seen.contains("STOPPING"), "{seen}");
}

#[tokio::test]
async fn servers_that_end_unasked_end_it() {
    let run = start();
    run.until_ready().await;
    run.break_servers.notify_one();
    assert_eq!(run.ended().await.0, Ended::Failed("accept failed".to_string()));
}

#[tokio::test]
async fn a_node_that_does_not_open_never_is_ready() {
    let run = start_with(Err("./data is in use".to_string()), Arc::default());
    run.opened.notify_one();
    let (ended, seen) = run.ended().await;
    assert_eq!(ended, Ended::Failed("./data is in use".to_string()));
    assert!(!seen.contains("READY") && seen.contains("STATUS=./data is in use"), "{seen}");
}

#[tokio::test]
async fn a_stop_while_it_opens_is_heard() {
    let run = start();
    run.manager.wait_for("STATUS=opening").await;
    run.ask(Request::Reload).await;
    run.ask(Request::Stop("SIGTERM")).await;
    let reloads = run.reloads.clone();
    let (ended, seen) = run.ended().await;
    assert_eq!(ended, Ended::Stopped);
    assert_eq!(reloads.load(Ordering::SeqCst), 1);
    assert!(!seen.contains("READY") && seen.contains("STOPPING=1"), "{seen}");
}

#[tokio::test]
async fn a_reload_says_when_it_began_and_that_it_is_over() {
    let run = start();
    run.until_ready().await;
    run.ask(Request::Reload).await;
    run.manager.wait_for("READY=1\nSTATUS=reloaded: log.level\n").await;
    let seen = run.manager.seen();
    let at = seen.find("RELOADING=1\nMONOTONIC_USEC=").expect("one message");
    let stamp = seen[at..].lines().nth(1).and_then(|line| line.split_once('=')).expect("a stamp").1;
    assert!(stamp.parse::<u64>().expect("a number") > 0);
    // The watchdog's messages may come in between.
    let since = run.manager.seen().find("reloaded: log.level").expect("it came");
    while !run.manager.seen()[since..].contains("STATUS=serving") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    run.task.abort();
}
