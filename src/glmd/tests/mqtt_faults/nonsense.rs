//! Random and mutated messages against what reads requests: no panic, memory
//! flat, and an answer wherever a sender can be told.

use glmd::mqtt::envelope;
use glmd::mqtt::request::{Incoming, Read, read};
use glmd::mqtt::topics::{Topics, matches};

/// Messages from which the others are made.
const PAYLOADS: [&str; 6] = [
    r#"{"text":"the lamp is [MASK]","max_tokens":4,"transaction":7}"#,
    r#"{"text":"a","reply_to":"glmd/clients/9","stream":true}"#,
    r#"{"messages":[{"role":"user","content":"h\u00e9"}],"temperature":0.5}"#,
    r#"{"texts":["a","b"],"labels":{"on":["on"],"off":["off"]}}"#,
    r#"{"transaction":{"id":[1,2,3]}}"#,
    r#"{"prompt":"x","priority":1e3,"deadline_ms":18446744073709551615}"#,
];
const TOPICS: [&str; 7] = [
    "glmd/n1/request/infill",
    "glmd/n1/request/cancel",
    "glmd/pool/house/request/chat",
    "glmd/n1/request/classify",
    "glmd/n1/response/infill",
    "$SYS/broker",
    "",
];
const RESPONSES: [&str; 6] = [
    "glmd/clients/1",
    "glmd/n1/response/x",
    "glmd/n1/request/infill",
    "glmd/clients/#",
    "home/door",
    "",
];
/// Growth that is noise of the allocator and not of a leak: 1,000,000 leaks of one byte would show.
const GROWTH: u64 = 1 << 20;

/// Marsaglia's xorshift64: the same messages in every run.
struct Noise(u64);

impl Noise {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit.max(1) as u64).unwrap_or_default()
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap_or_default()
    }

    /// A seed that is left alone, or cut, spliced, nested, or strewn with bytes.
    fn mutate(&mut self, seed: &str) -> Vec<u8> {
        let mut bytes = seed.as_bytes().to_vec();
        for _ in 0..self.below(6).saturating_sub(2) {
            let at = self.below(bytes.len() + 1);
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.byte()),
                2 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << self.below(8);
                    }
                }
                3 => {
                    let piece = bytes[at..].to_vec();
                    bytes.splice(at..at, piece);
                }
                4 => {
                    let deep = vec![b'['; self.below(300)];
                    bytes.splice(at..at, deep);
                }
                _ => bytes = (0..self.below(200)).map(|_| self.byte()).collect(),
            }
        }
        bytes
    }

    fn text(&mut self, seed: &str) -> String {
        match self.below(3) {
            0 => String::from_utf8_lossy(&self.mutate(seed)).into_owned(),
            _ => seed.to_owned(),
        }
    }

    fn message(&mut self) -> Incoming {
        let topic = self.pick(&TOPICS);
        let response = self.pick(&RESPONSES);
        let payload = self.pick(&PAYLOADS);
        Incoming {
            topic: self.text(topic),
            payload: self.mutate(payload).into(),
            retained: self.below(10) == 0,
            redelivered: self.below(10) == 0,
            response_topic: (self.below(3) > 0).then(|| self.text(response)),
            correlation: (self.below(2) > 0).then(|| vec![0; self.below(1100)].into()),
            expiry_s: [None, Some(0), Some(30)][self.below(3)],
        }
    }
}

/// Reads `count` messages; whether all went well.
pub fn run(count: usize) -> bool {
    let topics = Topics::new("glmd", "n1", Some(("g", "house")));
    let allowed = ["glmd/n1/response/#", "glmd/clients/#"].map(str::to_owned);
    let may = |topic: &str| {
        !topic.contains(['+', '#', '\0']) && allowed.iter().any(|filter| matches(filter, topic))
    };
    let mut noise = Noise(88_172_645_463_325_252);
    let (mut requests, mut refused, mut ignored, mut bad) = (0, 0, 0, 0);
    let mut before = 0;
    for n in 0..count {
        // What the allocator keeps for itself is there by then.
        if n == count / 10 {
            before = glmd::process::memory().anonymous;
        }
        let message = noise.message();
        let good = match read(&message, &topics, &allowed) {
            Read::Request(request) => {
                requests += 1;
                may(&request.reply.topic)
            }
            Read::Refused(reply, detail) => {
                refused += 1;
                let told = envelope::answer(&reply, &Err(*detail));
                may(&reply.topic) && serde_json::from_slice::<serde_json::Value>(&told).is_ok()
            }
            // Nobody can be told: not for us, an old wish, or an answer to where we may not publish.
            Read::Ignored("topic") => {
                ignored += 1;
                topics.asked(&message.topic).is_none()
            }
            Read::Ignored("retained") => {
                ignored += 1;
                message.retained
            }
            Read::Ignored("response_topic") => {
                ignored += 1;
                message
                    .response_topic
                    .as_deref()
                    .is_none_or(|topic| !may(topic))
            }
            Read::Ignored(_) => {
                ignored += 1;
                message.response_topic.is_none()
            }
        };
        if !good {
            bad += 1;
            println!("treated in the wrong way: {message:?}");
        }
    }
    let grown = glmd::process::memory().anonymous.saturating_sub(before);
    println!("random and mutated messages          {count}");
    println!("requests / refused / ignored         {requests} / {refused} / {ignored}");
    println!("treated in the wrong way             {bad}");
    println!("memory grown by                      {} KiB", grown >> 10);
    bad == 0 && requests > 0 && refused > 0 && grown < GROWTH
}
