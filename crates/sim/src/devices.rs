//! Devices shared by several engines.

/// How many engines of each device are busy.
///
/// Without MPS the kernels of two processes on one GPU are time-sliced: while both are busy each runs at half speed.
#[derive(Debug)]
pub(crate) struct Devices {
    instances_per_device: usize,
    /// Engines that are busy, by engine.
    is_busy: Vec<bool>,
    busy: Vec<u32>,
}

impl Devices {
    pub(crate) fn new(instances: usize, instances_per_device: usize) -> Self {
        Self {
            instances_per_device,
            is_busy: vec![false; instances],
            busy: vec![0; instances.div_ceil(instances_per_device)],
        }
    }

    /// Notes whether an engine is busy from now on. If that changes the number of busy engines on a shared device,
    /// returns that number and the engines on the device.
    pub(crate) fn note(
        &mut self,
        engine: usize,
        is_busy: bool,
    ) -> Option<(u32, std::ops::Range<usize>)> {
        if self.instances_per_device == 1 || self.is_busy[engine] == is_busy {
            return None;
        }
        self.is_busy[engine] = is_busy;
        let device = engine / self.instances_per_device;
        if is_busy {
            self.busy[device] += 1;
        } else {
            self.busy[device] -= 1;
        }
        Some((self.busy[device], self.engines_beside(engine)))
    }

    /// The engines on an engine's device, itself included.
    pub(crate) fn engines_beside(&self, engine: usize) -> std::ops::Range<usize> {
        let first = engine - engine % self.instances_per_device;
        first..(first + self.instances_per_device).min(self.is_busy.len())
    }
}
