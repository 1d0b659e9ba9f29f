//! The connection: what is known of it, when it is given up, how it ends.

use std::time::{Duration, Instant};

use super::super::backoff::Ended;
use super::super::events;
use super::super::link::{Connection, Event, Lost, Meaning, Terms};
use super::super::outbox::Class;
use super::{Answering, Fatal, Session, now};

/// Wait for the last acknowledgement and the farewell.
const FAREWELL: Duration = Duration::from_secs(2);

/// What is known of the present connection.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) connection: Connection,
    pub(super) since: Instant,
    pub(super) terms: Option<Terms>,
    pub(super) asked: bool,
    pub(super) subscribed: bool,
    /// Whether we have said farewell.
    pub(super) left: bool,
    /// The last time that the broker did what it owes us.
    pub(super) alive: Instant,
}

impl Line {
    /// A connection that is being made.
    pub(super) const fn new(connection: Connection, now: Instant) -> Self {
        Self {
            connection,
            since: now,
            terms: None,
            asked: false,
            subscribed: false,
            left: false,
            alive: now,
        }
    }
}

/// The next event of the line, or never.
pub(super) async fn next(line: &mut Option<Line>) -> Event {
    match line {
        Some(line) => line.connection.next().await,
        None => std::future::pending().await,
    }
}

impl<A: Answering> Session<A> {
    pub(super) fn on_subscribed(&mut self, granted: &[bool], now: Instant) {
        let filters = self.options.presence.filters();
        let refused: Vec<&str> = filters
            .iter()
            .zip(granted)
            .filter(|(_, granted)| !**granted)
            .map(|(filter, _)| filter.as_str())
            .collect();
        let Some(line) = &mut self.line else { return };
        line.alive = now;
        if !refused.is_empty() || granted.len() != filters.len() {
            // Half deaf is worse than away: an operator sees a node that is offline.
            events::subscription_refused(&refused.join(", "));
            let lost = Lost {
                reason: "the broker refused a subscription".to_owned(),
                meaning: Meaning::Refused,
            };
            self.drop_line(&lost, now);
            return;
        }
        line.subscribed = true;
        self.announce(now);
    }

    pub(super) fn on_lost(&mut self, lost: &Lost, now: Instant) -> Result<(), Fatal> {
        if lost.meaning == Meaning::TakenOver {
            return Err(Fatal::TakenOver(self.settings.client_id.clone()));
        }
        self.drop_line(lost, now);
        Ok(())
    }

    fn drop_line(&mut self, lost: &Lost, now: Instant) {
        let (after, left) = self.line.take().map_or((Duration::ZERO, false), |line| {
            (now.saturating_duration_since(line.since), line.left)
        });
        self.outbox.connection_lost();
        self.acks.connection_lost();
        self.desk.connection_lost();
        let wait = self.backoff.next(match lost.meaning {
            Meaning::Refused => Ended::Refused,
            _ if left => Ended::Left,
            _ => Ended::Lost { after },
        });
        self.retry_at = now + wait;
        events::lost(&self.settings.address, &lost.reason, wait);
    }

    /// Ends a connection on which the broker owes us something for three keep-alives.
    pub(super) fn watch(&mut self, now: Instant) {
        let Some(line) = &mut self.line else { return };
        let owes = !line.subscribed || line.left || self.outbox.unacknowledged() > 0;
        if !owes {
            line.alive = now;
        } else if now.saturating_duration_since(line.alive) > 3 * self.settings.keep_alive {
            let lost = Lost {
                reason: "the broker owes an acknowledgement for three keep-alives".to_owned(),
                meaning: Meaning::Gone,
            };
            self.drop_line(&lost, now);
        }
    }

    /// Largest message that the broker takes, as far as is known.
    pub(super) fn packet_limit(&self) -> usize {
        let terms = self.line.as_ref().and_then(|line| line.terms);
        terms.map_or(self.settings.packet_bytes, |t| t.packet_bytes)
    }

    /// Says that we are gone before the broker has to notice it.
    pub(super) async fn farewell(mut self) {
        self.tasks.abort_all();
        let offline = self.options.presence.offline();
        self.outbox.put(Class::State, offline);
        let deadline = tokio::time::sleep(FAREWELL);
        tokio::pin!(deadline);
        let mut parting = false;
        loop {
            self.pump(now());
            if self.outbox.is_empty() && !parting {
                let sent = self.line.as_ref().map(|line| line.connection.disconnect());
                match sent {
                    Some(Ok(())) => parting = true,
                    Some(Err(_)) => {}
                    None => return,
                }
            }
            tokio::select! {
                event = next(&mut self.line) => {
                    let over = matches!(event, Event::Lost(_));
                    if over || self.on_event(event).is_err() {
                        return;
                    }
                }
                () = &mut deadline => return,
            }
        }
    }
}
