//! Threads, listeners and connections: start, drain, stop.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use kvroute_router::InvalidRouterConfig;
use kvroute_types::InstanceId;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{interval, sleep, timeout};

use crate::client::ClientStream;
use crate::config::{GatewayConfig, InvalidConfig, PromptConfig, seconds};
use crate::fleet::Fleet;
use crate::naming::{Namer, TokenizerError};
use crate::receipts::DecisionLog;
use crate::trace::Tracer;
use crate::upstream::{Connection, Pool};
use crate::{admin, control, events, proxy};

const BACKLOG: i32 = 4_096;

/// Why the gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error("invalid configuration")]
    Config(#[from] InvalidConfig),
    /// The router cannot be built from it.
    #[error("invalid configuration")]
    Router(#[from] InvalidRouterConfig),
    /// The model's tokenizer cannot be used.
    #[error("prompts cannot be tokenised")]
    Tokenizer(#[from] TokenizerError),
    /// An address cannot be used.
    #[error("cannot listen on {addr}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The decision log cannot be written.
    #[error("cannot open the decision log")]
    Log(#[source] io::Error),
    /// No spans can be exported.
    #[error("cannot export spans")]
    Tracing(#[source] opentelemetry_otlp::ExporterBuildError),
    /// No thread or event loop could be made.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Why a new configuration was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// It is wrong.
    #[error("invalid configuration")]
    Config(#[from] InvalidConfig),
    /// It changes what is fixed while the gateway runs.
    #[error("{key} cannot change while the gateway runs; restart it")]
    NeedsRestart {
        /// The setting.
        key: &'static str,
    },
}

/// How far the gateway is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Phase {
    Serving,
    /// Requests are still taken, but every answer closes its connection.
    LameDuck,
    /// Nothing new is taken.
    Draining,
    /// Serving threads are done.
    Stopped,
}

/// A gateway that runs, on threads of its own.
///
/// Dropping it without [`Gateway::shutdown`] stops it without a drain.
pub struct Gateway {
    addr: SocketAddr,
    admin_addr: SocketAddr,
    fleet: Arc<Fleet>,
    phase: watch::Sender<Phase>,
    /// Closed when the last serving thread is done.
    serving: mpsc::Receiver<Infallible>,
    control: Option<thread::JoinHandle<()>>,
}

impl Gateway {
    /// Binds the listeners and starts serving.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub fn start(config: GatewayConfig) -> Result<Self, StartError> {
        config.validate()?;
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        let threads = config.threads.unwrap_or_else(cores);
        let (listen, admin_listen) = (config.listen, config.admin_listen);
        let log = config.receipts.log.as_deref().map(DecisionLog::open).transpose();
        let tracer = Tracer::new(&config.tracing).map_err(StartError::Tracing)?.map(Arc::new);
        let namer = Namer::new(&config)?;
        let fleet = Arc::new(Fleet::new(config, log.map_err(StartError::Log)?, tracer, namer)?);

        let listen_on = |addr| move |source| StartError::Listen { addr, source };
        let listeners = bind(listen, threads).map_err(listen_on(listen))?;
        let addr = listeners[0].local_addr().map_err(listen_on(listen))?;
        let admin = bind(admin_listen, 1).map_err(listen_on(admin_listen))?.remove(0);
        let admin_addr = admin.local_addr().map_err(listen_on(admin_listen))?;

        let (phase, phases) = watch::channel(Phase::Serving);
        let (done, serving) = mpsc::channel(1);
        for (at, listener) in listeners.into_iter().enumerate() {
            let (fleet, phases, done) = (Arc::clone(&fleet), phases.clone(), done.clone());
            let serve = move || async move {
                serve_thread(listener, fleet, phases, threads).await;
                drop(done);
            };
            spawn_thread(format!("kvroute-{at}"), serve).map_err(StartError::Thread)?;
        }
        let control = {
            let (fleet, mut phases) = (Arc::clone(&fleet), phases);
            let run = move || async move {
                let stopped = phases.wait_for(|phase| *phase == Phase::Stopped);
                tokio::select! {
                    () = control::run(Arc::clone(&fleet)) => {}
                    () = events::run(Arc::clone(&fleet)) => {}
                    () = admin::serve(admin, fleet) => {}
                    _ = stopped => {}
                }
            };
            spawn_thread("kvroute-control".into(), run).map_err(StartError::Thread)?
        };
        tracing::info!(%addr, %admin_addr, threads, "gateway started");
        Ok(Self { addr, admin_addr, fleet, phase, serving, control: Some(control) })
    }

    /// Where clients connect.
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where the admin API is.
    pub const fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// Whether an instance can serve.
    pub fn is_ready(&self) -> bool {
        self.fleet.is_ready()
    }

    /// Instances that are routed to by what they tell of their caches.
    pub fn believed_instances(&self) -> usize {
        self.fleet.believed_instances()
    }

    /// Requests sent to instances and not ended.
    pub fn in_flight(&self) -> usize {
        self.fleet.in_flight()
    }

    /// The configuration in effect, changes through the admin API included.
    pub fn config(&self) -> GatewayConfig {
        GatewayConfig::clone(&self.fleet.config())
    }

    /// Takes a new configuration without dropping a request: instances come and go, and the policy and all limits and
    /// time-outs apply from the next request (connection) on.
    ///
    /// # Errors
    /// [`ReloadError`]; nothing has changed then.
    pub fn reload(&self, config: GatewayConfig) -> Result<(), ReloadError> {
        self.fleet.change(|old| {
            let fixed = [
                ("listen", config.listen == old.listen),
                ("admin_listen", config.admin_listen == old.admin_listen),
                ("threads", config.threads == old.threads),
                ("seed", config.seed == old.seed),
                ("prompt.block_bytes", config.prompt.block_bytes == old.prompt.block_bytes),
                (
                    "prompt",
                    PromptConfig { prefix_chars: old.prompt.prefix_chars, ..config.prompt.clone() }
                        == old.prompt,
                ),
                ("kv_events", config.kv_events == old.kv_events),
                ("index", config.index == old.index),
                ("load", config.router().load == old.router().load),
                ("limits.connections", config.limits.connections == old.limits.connections),
                ("receipts", config.receipts == old.receipts),
                ("tracing", config.tracing == old.tracing),
            ];
            if let Some((key, _)) = fixed.into_iter().find(|(_, is_same)| !is_same) {
                return Err(ReloadError::NeedsRestart { key });
            }
            *old = config;
            Ok(())
        })
    }

    /// Stops in order: for `timeouts.lame_duck_s` requests are still taken while clients are told to move away, then
    /// the listeners close, and requests under way have `timeouts.drain_s` to end. Connections that have not carried a
    /// request are given `timeouts.lame_duck_s` for their first.
    pub async fn shutdown(mut self) {
        tracing::info!("gateway is draining");
        self.phase.send_replace(Phase::LameDuck);
        sleep(seconds(self.fleet.config().timeouts.lame_duck_s)).await;
        self.phase.send_replace(Phase::Draining);
        // No value is ever sent: this ends when all serving threads have.
        let _ = self.serving.recv().await;
        self.phase.send_replace(Phase::Stopped);
        if let Some(control) = self.control.take() {
            let joined = tokio::task::spawn_blocking(move || control.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the control thread panicked");
            }
        }
        let fleet = Arc::clone(&self.fleet);
        let close = move || {
            fleet.keep_snapshot();
            fleet.close_logs();
        };
        if tokio::task::spawn_blocking(close).await.is_err() {
            tracing::error!("the decision log and the last spans may be cut off");
        }
        tracing::info!("gateway stopped");
    }
}

/// Listeners that share one address, so that the kernel spreads the connections.
fn bind(addr: SocketAddr, count: usize) -> io::Result<Vec<StdListener>> {
    let open = |addr: SocketAddr, is_shared: bool| {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(is_shared)?;
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        Ok::<_, io::Error>(socket)
    };
    // Sharing would also share with a stranger: first see that nobody is there.
    let addr = open(addr, false)?.local_addr()?.as_socket().unwrap_or(addr);
    let listen = |_| {
        let socket = open(addr, true)?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    (0..count).map(listen).collect()
}

/// A thread with an event loop that ends when the task does, and all tasks that it spawned with it.
fn spawn_thread<F: Future<Output = ()>>(
    name: String,
    task: impl FnOnce() -> F + Send + 'static,
) -> io::Result<thread::JoinHandle<()>> {
    // Long prompts are tokenised on its blocking threads: more of them than cores would only wait for one another.
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(cores.max(2))
        .build()?;
    thread::Builder::new().name(name).spawn(move || LocalSet::new().block_on(&runtime, task()))
}

/// What the connections of one thread share.
pub(crate) struct Worker {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) pool: Pool,
    is_stopping: Cell<bool>,
}

impl Worker {
    /// Whether clients should move away.
    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.get()
    }

    /// Keeps a connection for the next request.
    pub(crate) fn keep(&self, instance: InstanceId, connection: Connection) {
        self.pool.put(instance, connection, self.fleet.config().limits.idle_connections);
    }
}

async fn serve_thread(
    listener: StdListener,
    fleet: Arc<Fleet>,
    phases: watch::Receiver<Phase>,
    threads: usize,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "a listener is lost"),
    };
    let config = fleet.config();
    let is_stopping = Cell::new(false);
    let worker = Rc::new(Worker { fleet, pool: Pool::default(), is_stopping });
    let sweeper = {
        let worker = Rc::clone(&worker);
        let idle = seconds(config.timeouts.idle_s);
        let mut ticks = interval(idle);
        spawn_local(async move {
            loop {
                ticks.tick().await;
                worker.pool.sweep(idle);
            }
        })
    };
    let room_max = config.limits.connections.div_ceil(threads);
    let room_max = u32::try_from(room_max.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
    let room = Arc::new(Semaphore::new(room_max as usize));

    let accepting = async {
        loop {
            // A place first: a connection that cannot be served stays in the kernel's queue.
            let place = Arc::clone(&room).acquire_owned().await;
            let (Ok(place), accepted) = (place, listener.accept().await) else { return };
            match accepted {
                Ok((stream, _)) => accept(&worker, &phases, stream, place),
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    // Out of file descriptors, most likely: let some go.
                    sleep(Duration::from_millis(10)).await;
                }
            }
        }
    };
    let mut stopping = phases.clone();
    let draining = async {
        let _ = stopping.wait_for(|phase| *phase >= Phase::LameDuck).await;
        worker.is_stopping.set(true);
        let _ = stopping.wait_for(|phase| *phase >= Phase::Draining).await;
    };
    tokio::select! {
        () = accepting => {}
        () = draining => {}
    }
    take_completed(listener, |stream| {
        let place = Arc::clone(&room).try_acquire_owned().ok()?;
        accept(&worker, &phases, stream, place);
        Some(())
    });
    let drain = seconds(worker.fleet.config().timeouts.drain_s);
    let is_dropped = phases.has_changed().is_err();
    if !is_dropped && timeout(drain, room.acquire_many(room_max)).await.is_err() {
        tracing::warn!("requests were cut off: they did not end within timeouts.drain_s");
    }
    sweeper.abort();
}

/// Closes the listener. Connections that the kernel has completed are ours to answer: they go to `take`, until it has no
/// more room. The kernel is asked itself, as the runtime may not have heard of the latest.
fn take_completed(listener: TcpListener, mut take: impl FnMut(TcpStream) -> Option<()>) {
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, _)) = listener.accept() {
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        if stream.is_ok_and(|stream| take(stream).is_none()) {
            return;
        }
    }
}

fn accept(
    worker: &Rc<Worker>,
    phases: &watch::Receiver<Phase>,
    stream: TcpStream,
    place: OwnedSemaphorePermit,
) {
    let config = worker.fleet.config();
    let (stream, outbox) = match ClientStream::new(stream) {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%error, "connection gone before it was accepted"),
    };
    let worker = Rc::clone(worker);
    let fleet = Arc::clone(&worker.fleet);
    let is_unused = Rc::new(Cell::new(true));
    let unused = Rc::clone(&is_unused);
    let service = service_fn(move |request| {
        unused.set(false);
        let (worker, outbox) = (Rc::clone(&worker), Rc::clone(&outbox));
        async move { Ok::<_, Infallible>(proxy::serve(worker, outbox, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(seconds(config.timeouts.request_head_s))
        .max_header_size(config.limits.head_bytes)
        .max_buf_size(config.limits.buffer_bytes)
        .serve_connection(TokioIo::new(stream), service);
    let grace = seconds(config.timeouts.lame_duck_s);
    let mut phases = phases.clone();
    spawn_local(async move {
        fleet.metrics.connections.inc();
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            _ = phases.wait_for(|phase| *phase >= Phase::Draining) => {
                // The first request of a new connection is under way, and hyper would close it at once. It is the last.
                let grace = if is_unused.get() { grace } else { Duration::ZERO };
                if let Ok(ended) = timeout(grace, connection.as_mut()).await {
                    ended
                } else {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "client connection ended");
        }
        fleet.metrics.connections.dec();
        drop(place);
    });
}
