//! Prompts over MQTT that are never lost.
//!
//! # When a request is acknowledged
//! When the broker has acknowledged its answer, and not before: until then the
//! broker holds the request, and delivers it again to this node or, in a pool,
//! to another one. Nothing is written when a request comes. Before an answer is
//! first published it is written to a small journal, so that after a crash the
//! same request gets the same bytes. `journal` says why, `session` how.
//!
//! A request is lost only if the broker forgets it, by losing its own state,
//! in the same moment in which this node dies.
//!
//! | module | what it is for |
//! |---|---|
//! | [`config`] | the section `mqtt` and what it means |
//! | [`session`] | the task that ties all of this together |
//! | [`link`] | one connection to the broker |
//! | [`desk`], [`acks`], [`outbox`], [`backoff`] | pure: requests, acknowledgements, messages, waits |
//! | [`journal`], [`clerk`] | answers on the disk, and the thread that puts them there |
//! | [`request`], [`topics`], [`envelope`], [`message`] | what is said |
//! | [`news`] | what is told as it happens |
//! | [`presence`], [`discovery`] | state and last will; what Home Assistant finds |
//! | [`events`] | what the operator is told |
//! | `serve` | the daemon as what answers |

pub mod acks;
pub mod backoff;
pub mod clerk;
pub mod config;
pub mod desk;
pub mod discovery;
pub mod envelope;
pub mod events;
pub mod journal;
pub mod link;
pub mod message;
pub mod news;
pub mod outbox;
pub mod presence;
pub mod request;
mod serve;
pub mod session;
pub mod topics;

pub use config::{BadConfig, Mqtt, Plan};
pub use serve::Served;
pub use session::{Answering, Ask, Fatal, Options, Session};

use clerk::Clerk;
use journal::Journal;

/// Opens the journal of a plan and makes its session.
///
/// # Errors
/// When the journal's folder cannot be used; the message names it.
pub fn prepare<A: Answering>(plan: Plan, answering: A) -> std::io::Result<Session<A>> {
    let named = |e: std::io::Error| {
        let text = format!("journal of answers in {}: {e}", plan.journal.display());
        std::io::Error::new(e.kind(), text)
    };
    let (journal, records) = Journal::open(&plan.journal, plan.journal_bytes).map_err(named)?;
    let clerk = Clerk::start(journal).map_err(named)?;
    Ok(Session::new(
        plan.settings,
        plan.options,
        answering,
        clerk,
        records,
    ))
}
