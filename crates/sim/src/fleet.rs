//! The engines: which needs attention next, and how those of one device slow each other down.

use kvroute_engine::{Engine, EngineOutput, EngineRequest, Mark};
use kvroute_types::{RequestId, Timestamp};

use crate::clock::EngineClock;
use crate::devices::Devices;

/// The engines of a cluster, by instance.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) engines: Vec<Engine>,
    clock: EngineClock,
    devices: Devices,
    /// What nobody is to see, and is empty then.
    unseen: Vec<EngineOutput>,
    /// Kept for their memory: one for each engine of a device.
    marks: Vec<Mark>,
}

impl Fleet {
    pub(crate) fn new(engines: Vec<Engine>, instances_per_device: usize) -> Self {
        Self {
            clock: EngineClock::new(engines.len()),
            devices: Devices::new(engines.len(), instances_per_device),
            engines,
            unseen: Vec::new(),
            marks: Vec::new(),
        }
    }

    /// The earliest event of an engine.
    pub(crate) fn next_event(&self) -> Option<Timestamp> {
        self.clock.next()
    }

    /// The engine it belongs to.
    pub(crate) fn next_engine(&self) -> usize {
        self.clock.next_engine()
    }

    /// Lets an engine's time pass, appending what it says to `outputs`. [`Fleet::changed`] is to follow.
    pub(crate) fn advance(
        &mut self,
        now: Timestamp,
        number: usize,
        outputs: &mut Vec<EngineOutput>,
    ) {
        self.engines[number].advance(now, outputs);
    }

    /// Lets an engine's time pass where nothing visible is due: what was would have been handled.
    pub(crate) fn catch_up(&mut self, now: Timestamp, number: usize) {
        self.engines[number].advance(now, &mut self.unseen);
        self.clock.set(number, self.engines[number].next_event());
    }

    /// Notes an engine's next event, and what its being busy or idle means for its neighbours on the device.
    pub(crate) fn changed(&mut self, now: Timestamp, number: usize) {
        let is_busy = self.engines[number].is_busy();
        if let Some((busy, engines)) = self.devices.note(number, is_busy) {
            for other in engines {
                // Nothing visible is due before `now`, or it would have been handled. What is due now has its own turn.
                if let Some(before) = now.as_nanos().checked_sub(1) {
                    let before = Timestamp::from_nanos(before);
                    self.engines[other].advance(before, &mut self.unseen);
                }
                self.engines[other].set_slowdown(now, busy);
                self.clock.set(other, self.engines[other].next_event());
            }
        } else {
            self.clock.set(number, self.engines[number].next_event());
        }
    }

    /// Hands a request to an engine, which has been advanced to `now`.
    pub(crate) fn submit(&mut self, now: Timestamp, number: usize, request: EngineRequest) {
        self.engines[number]
            .submit(now, request)
            .expect("every request was checked before the run");
        self.changed(now, number);
    }

    /// When engine `number` would have the first token of request `id` if nothing came in but `inputs`: in the order of
    /// their times, when which engine gets which request, `id` among them. The fleet is left as it is.
    ///
    /// Everything due by `now` has been handled. The engines of the device run on, as in the simulation itself, and are
    /// rewound.
    pub(crate) fn foresee_first_token(
        &mut self,
        now: Timestamp,
        number: usize,
        id: RequestId,
        inputs: impl Iterator<Item = (Timestamp, usize, RequestId)>,
        request: impl Fn(RequestId) -> EngineRequest,
    ) -> Timestamp {
        let device = self.devices.engines_beside(number);
        let mut marks = std::mem::take(&mut self.marks);
        marks.resize_with(device.len().max(marks.len()), Mark::new);
        for (engine, mark) in device.clone().zip(&mut marks) {
            self.catch_up(now, engine);
            self.engines[engine].mark(mark);
        }
        let mut inputs = inputs.filter(|(_, engine, _)| device.contains(engine)).peekable();
        let mut outputs = Vec::new();
        let first_token = 'first_token: loop {
            let next = |engine: usize| self.engines[engine].next_event().map(|at| (at, engine));
            let event = device.clone().filter_map(next).min();
            let (at, engine, input) = match (event, inputs.peek()) {
                (Some((at, engine)), Some(&(input_at, ..))) if at <= input_at => (at, engine, None),
                (_, Some(_)) => {
                    let (at, engine, id) = inputs.next().expect("peeked at");
                    (at, engine, Some(id))
                }
                (Some((at, engine)), None) => (at, engine, None),
                (None, None) => unreachable!("the request is served before all are idle"),
            };
            self.advance(at, engine, &mut outputs);
            for output in outputs.drain(..) {
                if let EngineOutput::Token { id: of, at, .. } = output
                    && of == id
                {
                    break 'first_token at;
                }
            }
            self.changed(at, engine);
            if let Some(id) = input {
                self.submit(at, engine, request(id));
            }
        };
        for (engine, mark) in device.clone().zip(&mut marks) {
            self.engines[engine].rewind(mark);
            self.devices.note(engine, self.engines[engine].is_busy());
            self.clock.set(engine, self.engines[engine].next_event());
        }
        self.marks = marks;
        first_token
    }
}
