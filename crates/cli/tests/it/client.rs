//! Clients that notice everything: one request at a time on a connection that is kept, and a load of many of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime::{self, Runtime};
use tokio::task::JoinHandle;

use crate::process::PATIENCE;

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// Answered in full, with status 200.
    Complete,
    /// A stream that had begun, and ended with an error event of this type and `[DONE]`.
    ErrorEvent(String),
    /// An error status, and the error's type.
    Status(u16, String),
    /// No connection could be made.
    Refused,
    /// A connection that had been used before was closed before any byte of this answer: HTTP clients send such a
    /// request again.
    Stale,
    /// Anything else: what no client should see.
    Broken(String),
}

/// An answer, as far as it came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The instance that gave it, if the gateway says so.
    pub(crate) instance: String,
    pub(crate) body: Vec<u8>,
    /// Whether the body came to its proper end.
    pub(crate) is_complete: bool,
}

impl Answer {
    pub(crate) fn outcome(&self, is_stream: bool) -> Outcome {
        let text = String::from_utf8_lossy(&self.body);
        let kind = |json: &str| {
            let json: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
            json["error"]["type"].as_str().unwrap_or("?").to_owned()
        };
        if self.status != 200 {
            return Outcome::Status(self.status, kind(&text));
        }
        if !self.is_complete {
            return Outcome::Broken(format!("cut after {} bytes", self.body.len()));
        }
        if !is_stream {
            let is_whole = serde_json::from_str::<serde_json::Value>(&text)
                .is_ok_and(|json| json["choices"].is_array());
            return if is_whole { Outcome::Complete } else { Outcome::Broken(text.into_owned()) };
        }
        let Some(events) = text.strip_suffix("data: [DONE]\n\n") else {
            return Outcome::Broken(format!("no [DONE] at the end of {text:?}"));
        };
        match events.rfind("data: {\"error\":") {
            None => Outcome::Complete,
            Some(0) => Outcome::Broken("an error event before anything else".into()),
            Some(at) => Outcome::ErrorEvent(kind(events[at..].trim_start_matches("data: "))),
        }
    }
}

/// Where a client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// Not at all.
    Never,
    /// Before anything has come, this long after the request was sent.
    Early(Duration),
    /// After that many pieces of the body.
    After(u32),
}

/// A client with one connection.
pub(crate) struct Client {
    addr: String,
    connection: Option<(SendRequest<Full<Bytes>>, JoinHandle<()>)>,
}

impl Client {
    pub(crate) fn new(addr: &str) -> Self {
        Self { addr: addr.to_owned(), connection: None }
    }

    /// Sends a request and reads the answer, or leaves on the way; `None` if it left.
    ///
    /// # Errors
    /// What kept an answer from beginning.
    pub(crate) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
        leave: Leave,
    ) -> Result<Option<Answer>, Outcome> {
        let is_reused = self.connection.as_ref().is_some_and(|(sender, _)| sender.is_ready());
        if !is_reused {
            self.connect().await?;
        }
        let (mut sender, driver) = self.connection.take().expect("it was just made");
        let begun = async {
            let error =
                |_| if is_reused { Outcome::Stale } else { Outcome::Broken("no answer".into()) };
            sender.send_request(request).await.map_err(error)
        };
        let response = if let Leave::Early(after) = leave {
            let Ok(response) = tokio::time::timeout(after, begun).await else {
                driver.abort();
                return Ok(None);
            };
            response?
        } else {
            begun.await?
        };
        let (head, mut body) = response.into_parts();
        let mut answer = Answer { status: head.status.as_u16(), ..Answer::default() };
        if let Some(name) = head.headers.get("x-kvroute-instance") {
            answer.instance = name.to_str().unwrap().to_owned();
        }
        if !read(&mut body, &mut answer, leave).await {
            driver.abort();
            return Ok(None);
        }
        if answer.is_complete && !matches!(head.headers.get("connection"), Some(v) if v == "close")
        {
            // The driver notices the end of the exchange a moment later.
            let _ = sender.ready().await;
            self.connection = Some((sender, driver));
        }
        Ok(Some(answer))
    }

    async fn connect(&mut self) -> Result<(), Outcome> {
        let stream = TcpStream::connect(&self.addr).await.map_err(|_| Outcome::Refused)?;
        stream.set_nodelay(true).map_err(|_| Outcome::Refused)?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let driver = tokio::spawn(async move {
            let _ = driver.await;
        });
        self.connection = Some((sender, driver));
        Ok(())
    }

    /// A whole request, whatever becomes of it.
    pub(crate) async fn ask(&mut self, prompt: &Prompt) -> (Outcome, Answer) {
        match self.send(prompt.request(&self.addr), Leave::Never).await {
            Ok(answer) => {
                let answer = answer.expect("it did not leave");
                (answer.outcome(prompt.stream), answer)
            }
            Err(outcome) => (outcome, Answer::default()),
        }
    }
}

/// False if the client left.
async fn read(body: &mut Incoming, answer: &mut Answer, leave: Leave) -> bool {
    let mut pieces = 0;
    loop {
        if matches!(leave, Leave::After(count) if pieces >= count) {
            return false;
        }
        match body.frame().await {
            Some(Ok(frame)) => answer.body.extend_from_slice(frame.data_ref().unwrap()),
            Some(Err(_)) => return true,
            None => {
                answer.is_complete = true;
                return true;
            }
        }
        pieces += 1;
    }
}

/// A chat request. Equal ones have equal answers, on every instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prompt {
    /// Told apart by this.
    pub(crate) number: u64,
    pub(crate) words: usize,
    pub(crate) max_tokens: u32,
    pub(crate) stream: bool,
}

impl Prompt {
    fn body(&self) -> String {
        let content = format!("number {} is told ", self.number).repeat(self.words.div_ceil(4));
        let options = if self.stream {
            r#","stream":true,"stream_options":{"include_usage":true}"#
        } else {
            ""
        };
        format!(
            r#"{{"model":"mock","messages":[{{"role":"user","content":"{content}"}}],"ignore_eos":true,"max_tokens":{}{options}}}"#,
            self.max_tokens
        )
    }

    pub(crate) fn request(&self, addr: &str) -> Request<Full<Bytes>> {
        Request::post("/v1/chat/completions")
            .header("host", addr)
            .header("content-type", "application/json")
            .header("x-request-id", format!("prompt-{}-{}", self.number, self.stream))
            .body(Full::new(self.body().into()))
            .unwrap()
    }
}

/// A request that is over.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    pub(crate) instance: String,
    pub(crate) outcome: Outcome,
}

/// Clients in a closed loop, on a thread of their own. They stop when this is dropped.
pub(crate) struct Load {
    runtime: Runtime,
    is_over: Arc<AtomicBool>,
    done: Arc<Mutex<Vec<Done>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// `clients` that ask one request after the other, made by `prompt` from its number. A client that cannot connect
    /// asks no more.
    pub(crate) fn start(addr: &str, clients: u64, prompt: fn(u64) -> Prompt) -> Self {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let done = Arc::new(Mutex::new(Vec::new()));
        let clients = (0..clients).map(|client| {
            let mut own = Client::new(addr);
            let (is_over, done) = (Arc::clone(&is_over), Arc::clone(&done));
            runtime.spawn(async move {
                for turn in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    let (outcome, answer) = own.ask(&prompt(client * 1_000_000 + turn)).await;
                    let is_refused = outcome == Outcome::Refused;
                    let instance = answer.instance;
                    done.lock().unwrap().push(Done { instance, outcome });
                    if is_refused {
                        return;
                    }
                }
            })
        });
        let clients = clients.collect();
        Self { runtime, is_over, done, clients }
    }

    /// Requests that are over so far.
    pub(crate) fn count(&self) -> usize {
        self.done.lock().unwrap().len()
    }

    /// Requests that this instance has answered so far.
    pub(crate) fn answered_by(&self, instance: &str) -> usize {
        self.done.lock().unwrap().iter().filter(|done| done.instance == instance).count()
    }

    /// Waits until all clients have their last answer.
    pub(crate) fn stop(self) -> Vec<Done> {
        self.is_over.store(true, Ordering::Relaxed);
        self.wait()
    }

    /// Waits until all clients have stopped by themselves.
    pub(crate) fn wait(self) -> Vec<Done> {
        let Self { runtime, done, clients, .. } = self;
        runtime.block_on(async {
            for client in clients {
                tokio::time::timeout(PATIENCE, client).await.expect("a last answer").unwrap();
            }
        });
        Arc::try_unwrap(done).expect("the clients are gone").into_inner().unwrap()
    }
}

/// One request by a client that leaves when it has waited for `patience`; `None` if it left.
pub(crate) fn ask_once(addr: &str, prompt: &Prompt, patience: Duration) -> Option<Outcome> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = Client::new(addr);
        tokio::time::timeout(patience, client.ask(prompt)).await.ok().map(|(outcome, _)| outcome)
    })
}

/// How many requests ended how.
pub(crate) fn tally(done: &[Done]) -> BTreeMap<Outcome, usize> {
    let mut tally = BTreeMap::new();
    for done in done {
        *tally.entry(done.outcome.clone()).or_default() += 1;
    }
    tally
}

/// Requires that every request was answered in full.
#[track_caller]
pub(crate) fn all_complete(done: &[Done]) {
    let tally = tally(done);
    assert!(!done.is_empty() && tally.keys().all(|how| *how == Outcome::Complete), "{tally:?}");
}
