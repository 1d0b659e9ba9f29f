//! Writes answers into the journal, on a thread of its own since a sync may take as long as an SD card likes.

use std::sync::mpsc as blocking;
use std::thread;

use tokio::sync::mpsc;

use super::journal::{Journal, Key, Record};

/// Answers that share one sync at most.
const BATCH: usize = 64;

/// What became of an answer that was handed in.
#[derive(Debug)]
pub struct Written {
    /// Its request.
    pub key: Key,
    /// Why it is not on the disk, if it is not.
    pub failed: Option<String>,
}

/// The way to the journal. Dropping it ends the thread when everything is written.
#[derive(Debug)]
pub struct Clerk {
    records: blocking::Sender<Record>,
    written: mpsc::UnboundedReceiver<Written>,
}

impl Clerk {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(journal: Journal) -> std::io::Result<Self> {
        // Both are bounded by the requests under way: each hands in one record at a time.
        let (records, incoming) = blocking::channel();
        let (outgoing, written) = mpsc::unbounded_channel();
        thread::Builder::new()
            .name("mqtt-journal".to_owned())
            .spawn(move || run(journal, &incoming, &outgoing))?;
        Ok(Self { records, written })
    }

    /// Hands an answer in; [`written`](Self::written) follows.
    pub fn write(&self, record: Record) {
        // The thread lives as long as this sender.
        let _ = self.records.send(record);
    }

    /// The next answer that was dealt with. Safe to drop while it waits.
    pub async fn written(&mut self) -> Option<Written> {
        self.written.recv().await
    }
}

fn run(
    mut journal: Journal,
    incoming: &blocking::Receiver<Record>,
    outgoing: &mpsc::UnboundedSender<Written>,
) {
    while let Ok(first) = incoming.recv() {
        let mut batch = vec![first];
        batch.extend(incoming.try_iter().take(BATCH - 1));
        let failed = journal
            .append(&batch)
            .err()
            .map(|e| format!("{}: {e}", journal.folder().display()));
        for record in batch {
            let told = outgoing.send(Written {
                key: record.key,
                failed: failed.clone(),
            });
            if told.is_err() {
                return;
            }
        }
    }
}
