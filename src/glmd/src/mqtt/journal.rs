//! Answers on disk, so that a request that is delivered again is answered with the same bytes.
//!
//! # Why answers and not requests
//! The broker keeps a request until it is acknowledged, and that happens when
//! the broker has the answer; so a request needs no second home here, and when
//! a node of a pool dies its requests go to the others, which they could not if
//! they lay in the dead node's journal. What the broker cannot know is which
//! answer was sent before a crash. So the answer is written down, and synced,
//! before it is first published: one append of the size of the answer, which is
//! the least that an SD card can be asked for. Answers that are ready at the
//! same time share one sync.
//!
//! # Format
//! Two segment files that are used in turn. A segment is its generation
//! (`u64`) and a run of records: `length: u32`, `crc32: u32` over the rest,
//! `key: [u8; 32]`, `expires: u64` (seconds since 1970), the answer; numbers
//! little-endian. A torn or damaged record ends its segment. When a segment has
//! half of the bytes, the other one is emptied and used with the next
//! generation; the clock of a board may jump, so it decides nothing here.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

/// Identity of a request: the same request delivered again has the same key.
pub type Key = [u8; 32];

/// An answer as it was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Request that it answers.
    pub key: Key,
    /// Seconds since 1970 until which a client that repeats the request gets this answer.
    pub expires: u64,
    /// The bytes.
    pub answer: Bytes,
}

const NAMES: [&str; 2] = ["answers.0", "answers.1"];
/// Generation of a segment.
const GENERATION: usize = 8;
/// Length and checksum.
const HEAD: usize = 8;
/// Key and expiry.
const FIXED: usize = 40;
/// Bytes that a record takes on disk besides its answer.
pub const RECORD_BYTES: usize = HEAD + FIXED;

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    files: [File; 2],
    active: usize,
    generation: u64,
    length: u64,
    half: u64,
}

/// What a segment file holds.
struct Segment {
    /// 0 when nothing was written.
    generation: u64,
    records: Vec<Record>,
    /// Where the last whole record ends.
    length: u64,
}

impl Journal {
    /// Opens or makes the journal in `folder`, of at most `bytes`, and returns the answers in it, oldest first.
    ///
    /// # Errors
    /// When the folder cannot be made, or a file cannot be read or written.
    pub fn open(folder: &Path, bytes: u64) -> io::Result<(Self, Vec<Record>)> {
        fs::create_dir_all(folder)?;
        let open = |name: &str| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(folder.join(name))
        };
        let mut files = [open(NAMES[0])?, open(NAMES[1])?];
        let half = bytes / 2;
        let [first, second] = &mut files;
        let mut segments = [read_segment(first, half)?, read_segment(second, half)?];
        let active = usize::from(segments[1].generation > segments[0].generation);
        let Segment {
            generation, length, ..
        } = segments[active];
        // What follows the last whole record is a torn write.
        files[active].set_len(length)?;
        files[active].seek(SeekFrom::Start(length))?;
        // The names of new files must survive too.
        File::open(folder)?.sync_all()?;
        let mut records = std::mem::take(&mut segments[1 - active].records);
        records.append(&mut segments[active].records);
        let journal = Self {
            folder: folder.to_owned(),
            files,
            active,
            generation,
            length,
            half,
        };
        Ok((journal, records))
    }

    /// Where it lies.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes records and waits until they are on the disk.
    ///
    /// # Errors
    /// When they may not be: disk full, or broken. Nothing of them counts then.
    pub fn append(&mut self, records: &[Record]) -> io::Result<()> {
        let mut batch = Vec::new();
        for record in records {
            encode(record, &mut batch);
        }
        let size = batch.len() as u64;
        if self.length == 0 || self.length + size > self.half {
            self.turn_over()?;
        }
        let file = &mut self.files[self.active];
        let written = file.write_all(&batch).and_then(|()| file.sync_data());
        if written.is_err() {
            // A part may be there: go back to the last good end, so that the next record can be read.
            file.set_len(self.length)?;
            file.seek(SeekFrom::Start(self.length))?;
            return written;
        }
        self.length += size;
        Ok(())
    }

    /// Empties the other segment and goes on there.
    fn turn_over(&mut self) -> io::Result<()> {
        let other = 1 - self.active;
        let generation = self.generation + 1;
        let file = &mut self.files[other];
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&generation.to_le_bytes())?;
        self.active = other;
        self.generation = generation;
        self.length = GENERATION as u64;
        Ok(())
    }
}

fn encode(record: &Record, into: &mut Vec<u8>) {
    let length = FIXED + record.answer.len();
    let mut crc = crc32fast::Hasher::new();
    crc.update(&record.key);
    crc.update(&record.expires.to_le_bytes());
    crc.update(&record.answer);
    into.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    into.extend_from_slice(&crc.finalize().to_le_bytes());
    into.extend_from_slice(&record.key);
    into.extend_from_slice(&record.expires.to_le_bytes());
    into.extend_from_slice(&record.answer);
}

/// Reads a segment. At most `limit` bytes, and one batch more, are ever written, so a longer file is not ours.
fn read_segment(file: &mut File, limit: u64) -> io::Result<Segment> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.take(limit.saturating_mul(2)).read_to_end(&mut bytes)?;
    let mut segment = Segment {
        generation: 0,
        records: Vec::new(),
        length: 0,
    };
    if let Some((generation, mut rest)) = bytes.split_first_chunk::<GENERATION>() {
        segment.generation = u64::from_le_bytes(*generation);
        while let Some((record, after)) = decode(rest) {
            segment.records.push(record);
            rest = after;
        }
        segment.length = (bytes.len() - rest.len()) as u64;
    }
    Ok(segment)
}

fn decode(bytes: &[u8]) -> Option<(Record, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if length < FIXED {
        return None;
    }
    let (body, after) = rest.split_at_checked(length)?;
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let (key, body) = body.split_first_chunk::<32>()?;
    let (expires, answer) = body.split_first_chunk::<8>()?;
    let record = Record {
        key: *key,
        expires: u64::from_le_bytes(*expires),
        answer: Bytes::copy_from_slice(answer),
    };
    Some((record, after))
}

/// The answers that may be asked for again, in memory, bounded like the journal.
#[derive(Debug)]
pub struct Answers {
    limit: usize,
    bytes: usize,
    by_key: HashMap<Key, (u64, Bytes)>,
    oldest: VecDeque<Key>,
}

impl Answers {
    /// Answers of at most `limit` bytes, beginning with `records`.
    #[must_use]
    pub fn new(limit: usize, records: Vec<Record>) -> Self {
        let mut answers = Self {
            limit,
            bytes: 0,
            by_key: HashMap::new(),
            oldest: VecDeque::new(),
        };
        for record in records {
            answers.insert(record);
        }
        answers
    }

    /// Keeps an answer; the oldest go when there is no room.
    pub fn insert(&mut self, record: Record) {
        let size = RECORD_BYTES + record.answer.len();
        if let Some((_, old)) = self
            .by_key
            .insert(record.key, (record.expires, record.answer))
        {
            self.bytes -= RECORD_BYTES + old.len();
        } else {
            self.oldest.push_back(record.key);
        }
        self.bytes += size;
        while self.bytes > self.limit
            && self.oldest.len() > 1
            && let Some(key) = self.oldest.pop_front()
            && let Some((_, answer)) = self.by_key.remove(&key)
        {
            self.bytes -= RECORD_BYTES + answer.len();
        }
    }

    /// The answer to a request that was answered before.
    ///
    /// The broker's redelivery always means the same request. A client that
    /// sends the same again means it for a while only: `now` is in seconds since 1970.
    #[must_use]
    pub fn get(&self, key: &Key, redelivered: bool, now: u64) -> Option<Bytes> {
        let (expires, answer) = self.by_key.get(key)?;
        (redelivered || now < *expires).then(|| answer.clone())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(n: u8, size: usize) -> Record {
        Record {
            key: [n; 32],
            expires: 100 + u64::from(n),
            answer: vec![n; size].into(),
        }
    }

    #[test]
    fn what_was_appended_is_there_after_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut journal, records) = Journal::open(folder.path(), 10_000).expect("a journal");
        assert!(records.is_empty());
        journal
            .append(&[record(1, 10), record(2, 0)])
            .expect("room");
        journal.append(&[record(3, 5)]).expect("room");
        let (_, records) = Journal::open(folder.path(), 10_000).expect("a journal");
        assert_eq!(records, [record(1, 10), record(2, 0), record(3, 5)]);
    }

    #[test]
    fn it_stays_small_and_keeps_the_latest() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut journal, _) = Journal::open(folder.path(), 2000).expect("a journal");
        for n in 0..200 {
            journal.append(&[record(n, 100)]).expect("room");
            let size: u64 = NAMES
                .iter()
                .map(|name| fs::metadata(folder.path().join(name)).map_or(0, |m| m.len()))
                .sum();
            assert!(size <= 2000, "{size}");
        }
        let (_, records) = Journal::open(folder.path(), 2000).expect("a journal");
        assert!(records.len() >= 6, "{}", records.len());
        let keys: Vec<u8> = records.iter().map(|r| r.key[0]).collect();
        let first = 200 - u8::try_from(keys.len()).expect("few");
        assert_eq!(keys, (first..200).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_disk_is_told_and_nothing_of_the_answer_stays() {
        // /dev/full has no room for anything.
        let folder = tempfile::tempdir().expect("a folder");
        let (mut journal, _) = Journal::open(folder.path(), 10_000).expect("a journal");
        journal.append(&[record(0, 10)]).expect("room");
        let full = File::options()
            .write(true)
            .open("/dev/full")
            .expect("Linux");
        let real = std::mem::replace(&mut journal.files[journal.active], full);
        assert!(journal.append(&[record(1, 10)]).is_err());
        journal.files[journal.active] = real;
        journal.append(&[record(2, 10)]).expect("room again");
        let (_, records) = Journal::open(folder.path(), 10_000).expect("a journal");
        assert_eq!(records, [record(0, 10), record(2, 10)]);
    }

    #[test]
    fn old_answers_make_room_and_expired_ones_are_not_given() {
        let records = (0..10).map(|n| record(n, 52)).collect();
        let answers = Answers::new(300, records);
        assert_eq!(answers.get(&[0; 32], true, 0), None);
        assert_eq!(answers.get(&[9; 32], false, 0), Some(vec![9; 52].into()));
        assert_eq!(answers.get(&[9; 32], false, 109), None);
        assert_eq!(answers.get(&[9; 32], true, 109), Some(vec![9; 52].into()));
        assert!(answers.bytes <= 300);
    }

    proptest! {
        #[test]
        fn a_cut_or_a_flipped_bit_costs_no_record_before_it(
            sizes in proptest::collection::vec(0_usize..60, 1..8), at in 0.0..1.0_f64, flip: bool, bit in 0_u8..8
        ) {
            let folder = tempfile::tempdir().expect("a folder");
            let (mut journal, _) = Journal::open(folder.path(), 100_000).expect("a journal");
            let written: Vec<Record> = sizes.iter().zip(0..).map(|(size, n)| record(n, *size)).collect();
            journal.append(&written).expect("room");
            let path = folder.path().join(NAMES[journal.active]);
            let mut bytes = fs::read(&path).expect("a file");
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a small file")]
            let place = (bytes.len() as f64 * at) as usize;
            if flip { bytes[place] ^= 1 << bit } else { bytes.truncate(place) }
            fs::write(&path, &bytes).expect("a file");
            let mut end = GENERATION;
            let before = |record: &&Record| {
                end += RECORD_BYTES + record.answer.len();
                end <= place
            };
            // A damaged generation decides which segment is used next, not what its records say.
            let whole = match flip && place < GENERATION {
                true => written.len(),
                false => written.iter().take_while(before).count(),
            };
            let (mut journal, records) = Journal::open(folder.path(), 100_000).expect("a journal");
            prop_assert_eq!(&records[..], &written[..whole]);
            journal.append(&[record(99, 3)]).expect("room");
            let (_, records) = Journal::open(folder.path(), 100_000).expect("a journal");
            prop_assert_eq!(records.last(), Some(&record(99, 3)));
        }
    }
}
