//! Server-sent events out of a stream of bytes (WHATWG HTML, section 9.2.6).

/// Largest event that is read. glmd sends a few hundred bytes at a time and a last one with the whole answer.
pub const MAX_EVENT_BYTES: usize = 4 << 20;

/// Why a stream is not a stream of events.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadStream {
    /// An event without an end.
    #[error("an event of the stream is larger than {MAX_EVENT_BYTES} bytes")]
    TooLarge,
    /// Bytes that are no text.
    #[error("an event of the stream is not UTF-8")]
    NotUtf8,
}

/// Takes bytes as they come and gives whole events.
#[derive(Debug, Default)]
pub struct Decoder {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    after_cr: bool,
}

impl Decoder {
    /// Takes bytes and returns the `data` of every event that they complete.
    ///
    /// # Errors
    /// When an event is too large or not text; the stream is then of no use.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, BadStream> {
        let mut events = Vec::new();
        for &byte in bytes {
            // A line ends at LF, CR or CR LF: the LF after a CR ends nothing.
            let ends = match byte {
                b'\n' if self.after_cr => {
                    self.after_cr = false;
                    continue;
                }
                b'\n' | b'\r' => true,
                _ => false,
            };
            self.after_cr = byte == b'\r';
            if ends {
                if let Some(event) = self.end_line()? {
                    events.push(event);
                }
            } else if self.line.len() + self.data.len() >= MAX_EVENT_BYTES {
                return Err(BadStream::TooLarge);
            } else {
                self.line.push(byte);
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Result<Option<String>, BadStream> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            return if std::mem::take(&mut self.has_data) {
                String::from_utf8(data)
                    .map(Some)
                    .map_err(|_| BadStream::NotUtf8)
            } else {
                Ok(None)
            };
        }
        let (field, value) = match line.iter().position(|b| *b == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (&line[..], &[][..]),
        };
        // Comments (empty field) keep a connection alive; event names and ids are not used by glmd.
        if field == b"data" {
            if self.has_data {
                self.data.push(b'\n');
            }
            self.data
                .extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
            self.has_data = true;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(bytes: &[u8]) -> Vec<String> {
        Decoder::default().push(bytes).expect("a stream")
    }

    #[test]
    fn events_end_at_an_empty_line() {
        assert_eq!(all(b"data: a\n\ndata: b\n"), ["a"]);
        assert_eq!(all(b"data: a\r\n\r\ndata:b\r\rdata\n\n"), ["a", "b", ""]);
        assert_eq!(all(b"data: a\ndata: b\n\n"), ["a\nb"]);
    }

    #[test]
    fn comments_and_other_fields_are_no_events() {
        assert_eq!(all(b": ping\n\nevent: x\nid: 1\n\ndata: a\n\n"), ["a"]);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut decoder = Decoder::default();
        let chunk = vec![b'x'; 1 << 20];
        let outcome = (0..8).try_for_each(|_| decoder.push(&chunk).map(drop));
        assert_eq!(outcome, Err(BadStream::TooLarge));
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(texts in proptest::collection::vec("[^\r\n]{0,20}", 0..6), cut in 1usize..7) {
            let stream: String = texts.iter().map(|t| format!("data: {t}\n\n")).collect();
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for part in stream.as_bytes().chunks(cut) {
                seen.extend(decoder.push(part).expect("a stream"));
            }
            prop_assert_eq!(seen, texts);
        }
    }
}
