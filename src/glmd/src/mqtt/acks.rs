//! Which of the broker's messages may be acknowledged. Pure.
//!
//! A request is acknowledged when the broker has its answer, and requests are
//! acknowledged in the order in which they came (MQTT 5, section 4.6). A number
//! of one connection means nothing in the next, so the book starts over with
//! every connection and its epoch is part of each number.
//!
//! A delivery for which there is no room is postponed: it is not acknowledged,
//! so the broker keeps it and delivers it again on the next connection. What
//! comes after it cannot be acknowledged before it, so it is postponed too.

use std::collections::VecDeque;

/// A message that the broker delivered on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Delivery {
    epoch: u64,
    number: u64,
}

#[derive(Debug)]
struct Entry<T> {
    number: u64,
    settled: bool,
    ack: T,
}

/// Deliveries of the present connection that are not acknowledged.
///
/// `T` is whatever the connection needs for the acknowledgement.
#[derive(Debug)]
pub struct Acks<T> {
    epoch: u64,
    next: u64,
    open: VecDeque<Entry<T>>,
    postponing: bool,
}

impl<T> Default for Acks<T> {
    fn default() -> Self {
        Self {
            epoch: 0,
            next: 0,
            open: VecDeque::new(),
            postponing: false,
        }
    }
}

impl<T> Acks<T> {
    /// Writes down a delivery, which must not come while [postponing](Self::postponing).
    pub fn delivered(&mut self, ack: T) -> Delivery {
        let number = self.next;
        self.next += 1;
        self.open.push_back(Entry {
            number,
            settled: false,
            ack,
        });
        Delivery {
            epoch: self.epoch,
            number,
        }
    }

    /// The fate of a delivery is safe. Deliveries of earlier connections are over already.
    pub fn settle(&mut self, delivery: Delivery) {
        if delivery.epoch != self.epoch {
            return;
        }
        if let Ok(index) = self
            .open
            .binary_search_by_key(&delivery.number, |entry| entry.number)
        {
            self.open[index].settled = true;
        }
    }

    /// The next acknowledgement to send, if it is due.
    #[must_use]
    pub fn due(&self) -> Option<&T> {
        let first = self.open.front()?;
        first.settled.then_some(&first.ack)
    }

    /// The acknowledgement that was due has been sent.
    pub fn sent(&mut self) {
        if self.due().is_some() {
            self.open.pop_front();
        }
    }

    /// Deliveries that are not acknowledged.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Leaves the last delivery, and all that follow, to the next connection.
    pub fn postpone(&mut self, delivery: Delivery) {
        if delivery.epoch != self.epoch {
            return;
        }
        self.open.retain(|entry| entry.number < delivery.number);
        self.postponing = true;
    }

    /// Whether what comes is left to the next connection.
    #[must_use]
    pub const fn postponing(&self) -> bool {
        self.postponing
    }

    /// The connection is gone; the broker will deliver again what was open.
    pub fn connection_lost(&mut self) {
        self.epoch += 1;
        self.open.clear();
        self.postponing = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn next<T: Clone>(acks: &mut Acks<T>) -> Option<T> {
        let due = acks.due().cloned();
        acks.sent();
        due
    }

    #[test]
    fn acknowledgements_keep_the_order_of_arrival() {
        let mut acks = Acks::default();
        let [a, b, c] = ["a", "b", "c"].map(|name| acks.delivered(name));
        acks.settle(b);
        assert_eq!(next(&mut acks), None);
        acks.settle(a);
        let sent = [next(&mut acks), next(&mut acks), next(&mut acks)];
        assert_eq!(sent, [Some("a"), Some("b"), None]);
        acks.settle(c);
        assert_eq!(next(&mut acks), Some("c"));
    }

    #[test]
    fn a_settled_delivery_of_an_old_connection_acknowledges_nothing() {
        let mut acks = Acks::default();
        let old = acks.delivered(1);
        acks.connection_lost();
        let new = acks.delivered(2);
        acks.settle(old);
        assert_eq!(next(&mut acks), None);
        acks.settle(new);
        assert_eq!(next(&mut acks), Some(2));
    }

    #[test]
    fn what_is_postponed_is_never_acknowledged_on_this_connection() {
        let mut acks = Acks::default();
        let (a, b) = (acks.delivered("a"), acks.delivered("b"));
        acks.postpone(b);
        assert!(acks.postponing());
        acks.settle(b);
        acks.settle(a);
        assert_eq!([next(&mut acks), next(&mut acks)], [Some("a"), None]);
        acks.connection_lost();
        assert!(!acks.postponing());
        let again = acks.delivered("b");
        acks.settle(again);
        assert_eq!(next(&mut acks), Some("b"));
    }

    proptest! {
        #[test]
        fn each_delivery_is_acknowledged_once(order in Just((0..40_usize).collect::<Vec<_>>()).prop_shuffle()) {
            let mut acks = Acks::default();
            let deliveries: Vec<Delivery> = (0..40).map(|n| acks.delivered(n)).collect();
            let mut sent = Vec::new();
            for index in order {
                acks.settle(deliveries[index]);
                acks.settle(deliveries[index]);
                while let Some(n) = next(&mut acks) { sent.push(n) }
            }
            prop_assert_eq!(sent, (0..40).collect::<Vec<_>>());
            prop_assert_eq!(acks.open(), 0);
        }
    }
}
