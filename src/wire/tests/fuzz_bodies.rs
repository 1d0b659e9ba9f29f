//! The body of the fuzz target of requests, on seeds and mutations of them.

#[path = "../../../fuzz/requests.rs"]
mod requests;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::requests::request;

    const SEEDS: [&str; 7] = [
        r#"{"text":"a [MASK] b","max_tokens":3,"stop":["."],"temperature":0.5,"priority":"high"}"#,
        r#"{"texts":["a","b"],"pattern":"{text} [MASK]","labels":{"x":["y"]},"normalize":"mean"}"#,
        r#"{"prompt":"a","logprobs":2,"echo":true,"stream":true,"stream_options":{"include_usage":true}}"#,
        r#"{"prompt":"a","response_format":{"type":"json_schema","json_schema":{"schema":{"type":"object"}}}}"#,
        r#"{"messages":[{"role":"user","content":[{"type":"text","text":"a"}]}],"tools":[{"name":"f"}]}"#,
        r#"{"messages":[{"role":"assistant","tool_calls":[{"id":"1"}]}],"max_completion_tokens":4}"#,
        r#"{"ids":[1,2,3]}"#,
    ];

    #[test]
    fn seeds_and_long_names() {
        for seed in SEEDS {
            request(seed.as_bytes());
        }
        let long = format!(r#"{{"text":"a","{}":1}}"#, "é".repeat(100_000));
        request(long.as_bytes());
        let long = format!(r#"{{"text":"a","priority":"{}"}}"#, "x".repeat(100_000));
        request(long.as_bytes());
    }

    proptest! {
        #[test]
        fn mutations(
            seed in 0..SEEDS.len(),
            edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..6),
        ) {
            let mut bytes = SEEDS[seed].as_bytes().to_vec();
            for (place, byte, kind) in edits {
                let at = place.index(bytes.len().max(1)).min(bytes.len());
                match kind {
                    0 => bytes.insert(at, byte),
                    1 => drop(bytes.drain(at..(at + 3).min(bytes.len()))),
                    _ => {
                        if let Some(old) = bytes.get_mut(at) {
                            *old = byte;
                        }
                    }
                }
            }
            request(&bytes);
        }
    }
}
