//! A load signal without any error, which no real scraper could have.

use std::collections::VecDeque;

use kvroute_engine::Gauges;
use kvroute_types::{LoadSnapshot, RequestId, Timestamp};

/// What the perfect load signal knows of one instance: every change, and exactly which requests are counted in it.
///
/// Steps that change neither are no news, so that a lost or an expired piece of news means the same however the engine
/// gets through its steps.
#[derive(Clone, Debug, Default)]
pub(crate) struct PerfectLoad {
    /// Requests that the router sent and that are not in the gauges yet, in the order of their sending.
    uncounted: VecDeque<(Timestamp, RequestId)>,
    /// Requests that are there and not in the gauges yet, in the order in which the engine takes them in.
    arrived: VecDeque<RequestId>,
    /// When the router sent the latest request.
    sent: Timestamp,
    /// Requests in the gauges so far, ended ones included.
    counted: u64,
    /// Waiting, running and `counted` at the latest news.
    told: (u32, u32, u64),
}

impl PerfectLoad {
    /// The router sent a request.
    pub(crate) fn sent(&mut self, now: Timestamp, id: RequestId) {
        self.sent = now;
        self.uncounted.push_back((now, id));
    }

    /// A request reached the instance.
    pub(crate) fn arrived(&mut self, id: RequestId) {
        self.arrived.push_back(id);
    }

    /// The gauges, if they tell anything new; `ended` requests have left them.
    pub(crate) fn news(&mut self, gauges: &Gauges, ended: u64) -> Option<LoadSnapshot> {
        let (told, as_of) = self.count(gauges, ended)?;
        let is_news = std::mem::replace(&mut self.told, told) != told;
        is_news.then(|| LoadSnapshot { as_of, ..(*gauges).into() })
    }

    /// A new router has taken over, which has sent nothing yet: the gauges as they are.
    pub(crate) fn told_anew(
        &mut self,
        now: Timestamp,
        gauges: &Gauges,
        ended: u64,
    ) -> Option<LoadSnapshot> {
        self.uncounted.clear();
        // It may send one yet at this very moment, which is not counted.
        self.sent = Timestamp::from_nanos(now.as_nanos().checked_sub(1)?);
        let (told, as_of) = self.count(gauges, ended)?;
        self.told = told;
        Some(LoadSnapshot { as_of, ..(*gauges).into() })
    }

    /// Brings the counts up to date: what there is to tell, and up to when requests are counted in it.
    fn count(&mut self, gauges: &Gauges, ended: u64) -> Option<((u32, u32, u64), Timestamp)> {
        let Gauges { waiting, running, .. } = *gauges;
        let counted = ended + u64::from(waiting) + u64::from(running);
        while self.counted < counted {
            let id = self.arrived.pop_front().expect("what is counted has arrived");
            // Those of an earlier router are not among them.
            if let Some(at) = self.uncounted.iter().position(|(_, uncounted)| *uncounted == id) {
                self.uncounted.remove(at);
            }
            self.counted += 1;
        }
        // Of requests sent at one time, none counts as seen before all are. Nothing can be seen to precede the run.
        let as_of = match self.uncounted.front() {
            Some((first, _)) => Timestamp::from_nanos(first.as_nanos().checked_sub(1)?),
            None => self.sent,
        };
        Some(((waiting, running, counted), as_of))
    }
}
