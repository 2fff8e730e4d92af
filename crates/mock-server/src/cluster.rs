//! Starting and stopping instances, and the handles to them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use kvroute_engine::{Counters, Gauges};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::config::{MockConfig, StartError};
use crate::device::Device;
use crate::faults::{Faults, InvalidFaults};
use crate::instance::Instance;
use crate::kv_events::{self, KvEventsAddress, Publisher, PublisherTasks};
use crate::server::{Phase, accept};

/// Running instances. Dropping it stops them at once; [`MockCluster::shutdown`] lets answers end first.
#[derive(Debug)]
pub struct MockCluster {
    instances: Vec<MockInstance>,
}

/// One running instance.
#[derive(Debug)]
pub struct MockInstance {
    address: SocketAddr,
    instance: Arc<Instance>,
    phase: watch::Sender<Phase>,
    acceptor: JoinHandle<()>,
}

impl MockCluster {
    /// Starts the instances of `config` on the current tokio runtime. They listen when this returns.
    ///
    /// # Errors
    /// [`StartError`] names the setting or the address at fault; nothing keeps running then.
    pub async fn start(config: MockConfig) -> Result<Self, StartError> {
        config.validate()?;
        let config = Arc::new(config);
        let clock = Clock::start(config.time_scale);
        let mut instances = Vec::new();
        let mut first = 0;
        while first < config.instances {
            let on_device = config.instances_per_device.min(config.instances - first);
            let (commands, receiver) = mpsc::unbounded_channel();
            let (mut publishers, mut tasks) = (Vec::new(), Vec::new());
            for number in first..first + on_device {
                let (publisher, task) = publisher(&config, number).await?.unzip();
                let hasher = config.kv_events.as_ref().map(|k| k.hasher(config.engine.block_size));
                publishers.push(publisher.zip(hasher));
                tasks.push(task);
            }
            let device = Device::new(clock, first, publishers, &config, receiver)?;
            tokio::spawn(device.run());
            let next_job = Arc::new(AtomicU32::new(0));
            for ((engine, number), events) in (first..first + on_device).enumerate().zip(tasks) {
                let (commands, next_job) = (commands.clone(), Arc::clone(&next_job));
                let instance =
                    Instance::new(&config, number, engine, clock, commands, next_job, events);
                let address = config.address(number)?;
                instances.push(MockInstance::start(address, instance).await?);
            }
            first += on_device;
        }
        Ok(Self { instances })
    }

    /// All instances, in order, those killed included.
    pub fn instances(&self) -> &[MockInstance] {
        &self.instances
    }

    /// Where the instances listen, in order.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.instances.iter().map(MockInstance::address).collect()
    }

    /// Takes no more requests and waits for the answers under way. Streams that a fault keeps silent never end.
    pub async fn shutdown(self) {
        for instance in &self.instances {
            instance.set_phase(Phase::Draining);
        }
        for instance in self.instances {
            let _ = instance.acceptor.await;
            instance.phase.closed().await;
        }
    }
}

/// The publisher of instance `number`, if there are to be any.
async fn publisher(
    config: &MockConfig,
    number: u32,
) -> Result<Option<(Publisher, PublisherTasks)>, StartError> {
    let Some(settings) = &config.kv_events else { return Ok(None) };
    let events = config.nth_address(settings.port, number)?;
    let replay = config.nth_address(settings.port, config.instances.saturating_add(number))?;
    let started = kv_events::start(settings, events, replay).await;
    started.map(Some).map_err(|(address, source)| StartError::Listen { address, source })
}

impl MockInstance {
    async fn start(address: SocketAddr, instance: Instance) -> Result<Self, StartError> {
        let failed = |source| StartError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let instance = Arc::new(instance);
        let (phase, phases) = watch::channel(Phase::Serving);
        let acceptor = tokio::spawn(accept(listener, Arc::clone(&instance), phases));
        Ok(Self { address, instance, phase, acceptor })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its base URL, `http://address:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it publishes KV events, if it does.
    pub fn kv_events(&self) -> Option<KvEventsAddress> {
        self.instance.events.as_ref().map(|events| events.address)
    }

    /// What it does wrong now.
    pub fn faults(&self) -> Faults {
        self.instance.faults()
    }

    /// Sets what it does wrong from the next request on.
    ///
    /// # Errors
    /// [`InvalidFaults`] names the setting out of range; nothing changes then.
    pub fn set_faults(&self, faults: Faults) -> Result<(), InvalidFaults> {
        faults.validate()?;
        self.instance.set_faults(faults);
        Ok(())
    }

    /// Dies at once: the port is closed, all connections are cut.
    pub fn kill(&self) {
        self.set_phase(Phase::Killed);
        self.instance.stop_events();
        self.acceptor.abort();
    }

    /// Its engine process dies and the API server lives on: open streams end with an error event, requests get a 500
    /// and `/health` a 503. (vLLM then exits within seconds: [`MockInstance::kill`].)
    pub fn fail_engine(&self) {
        self.instance.fail_engine();
    }

    /// Its engine's counters now; `None` if the engine's task is gone.
    pub async fn counters(&self) -> Option<Counters> {
        self.instance.snapshot().await.map(|snapshot| snapshot.counters)
    }

    /// Its engine's gauges as of the last step; `None` if the engine's task is gone.
    pub async fn gauges(&self) -> Option<Gauges> {
        self.instance.snapshot().await.map(|snapshot| snapshot.gauges)
    }

    /// Inference requests being served, as `GET /load` tells.
    pub fn in_flight(&self) -> u32 {
        self.instance.in_flight()
    }

    fn set_phase(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }
}
