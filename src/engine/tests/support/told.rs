//! Telemetry of a machine that a test makes up.

use std::sync::{Arc, Mutex};

use glm_engine::memory::telemetry::{Detail, Snapshot, System, Telemetry};
use glm_engine::units::Bytes;

pub const TOTAL: Bytes = Bytes::mib(4096);

/// A machine that says what the test says, and counts how often it is asked.
#[derive(Clone, Debug, Default)]
pub struct Told(Arc<Mutex<(Snapshot, usize)>>);

impl Told {
    pub fn say(&self, available: Bytes) {
        self.0.lock().unwrap().0 = machine(available);
    }

    pub fn looks(&self) -> usize {
        self.0.lock().unwrap().1
    }
}

impl Telemetry for Told {
    fn snapshot(&mut self, _: Detail) -> Snapshot {
        let mut told = self.0.lock().unwrap();
        told.1 += 1;
        told.0.clone()
    }
}

pub fn machine(available: Bytes) -> Snapshot {
    Snapshot {
        system: Some(System {
            total: TOTAL,
            available,
            ..System::default()
        }),
        ..Snapshot::default()
    }
}
