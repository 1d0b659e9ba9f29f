//! Answers that are under way: streams, and clients that go away, fall asleep or say no more.

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use serde_json::Value;

    use crate::support::{Rig, Script, events, post, wait};

    const STREAM: &str = r#"{"text":"the lamp in the [MASK]","stream":true,"max_tokens":2000}"#;
    const WHOLE: &str = r#"{"text":"the lamp in the [MASK]","max_tokens":2000}"#;

    /// A daemon whose model never ends an answer, at a pace that a test can follow.
    fn endless() -> Rig {
        let script = Arc::new(Script::default());
        script.endless.store(true, Ordering::SeqCst);
        *script.step_time.lock().expect("unused") = Duration::from_millis(2);
        Rig::scripted(|_| {}, script)
    }

    #[test]
    fn a_stream_of_an_infill_adds_up_to_the_answer() {
        let rig = Rig::usual();
        let body = r#"{"text":"the [MASK] in the [MASK] is off","stream":true,"n":2,"seed":3}"#;
        let response = rig.post("/v1/infill", body);
        assert_eq!(response.header("content-type"), Some("text/event-stream"));
        assert_eq!(response.header("cache-control"), Some("no-store"));
        let mut all = events(&response.body);
        let last = all.pop().expect("the whole answer");
        let mut texts = [
            [String::new(), String::new()],
            [String::new(), String::new()],
        ];
        for chunk in &all {
            let at = |name: &str| {
                usize::try_from(chunk[name].as_u64().expect("a number")).expect("small")
            };
            assert_eq!(chunk["id"], last["id"]);
            texts[at("index")][at("blank")].push_str(chunk["delta"].as_str().expect("text"));
        }
        for (choice, blanks) in texts.iter().enumerate() {
            for (blank, text) in blanks.iter().enumerate() {
                assert_eq!(
                    last["choices"][choice]["blanks"][blank]["text"],
                    text.as_str()
                );
                assert!(!text.is_empty());
            }
        }
        let whole = rig
            .post("/v1/infill", &body.replace("true", "false"))
            .json();
        for field in ["text", "blanks", "choices"] {
            assert_eq!(whole[field], last[field], "{field}");
        }
    }

    #[test]
    fn a_stream_of_a_completion_is_openais() {
        let rig = Rig::usual();
        let body = r#"{"prompt":"the lamp","stream":true,"max_tokens":3,"seed":1,"logprobs":1,
            "echo":true,"stream_options":{"include_usage":true}}"#;
        let all = events(&rig.post("/v1/completions", body).body);
        let text: String = all
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["text"].as_str())
            .collect();
        let tokens: Vec<Value> = all
            .iter()
            .filter_map(|chunk| {
                chunk["choices"][0]["logprobs"]["tokens"]
                    .as_array()
                    .cloned()
            })
            .flatten()
            .collect();
        let last = all.last().expect("a chunk");
        assert_eq!(last["choices"], serde_json::json!([]));
        assert_eq!(last["usage"]["completion_tokens"], 3);
        let ended = &all[all.len() - 2]["choices"][0];
        assert!(ended["finish_reason"].is_string());
        let whole = rig
            .post("/v1/completions", &body.replacen("true", "false", 1))
            .json();
        assert_eq!(whole["object"], "text_completion");
        assert_eq!(whole["choices"][0]["text"], text.as_str());
        assert!(text.starts_with("the lamp"));
        assert_eq!(
            whole["choices"][0]["logprobs"]["tokens"],
            Value::Array(tokens)
        );
        assert_eq!(whole["choices"][0]["finish_reason"], ended["finish_reason"]);
    }

    #[test]
    fn a_refused_stream_is_an_error_with_its_status() {
        let rig = Rig::usual();
        let response = rig.post("/v1/infill", r#"{"text":"no blank","stream":true}"#);
        assert_eq!(response.status, 400);
        let late = r#"{"text":"a [MASK]","stream":true,"deadline_ms":0}"#;
        let response = rig.post("/v1/infill", late);
        assert_eq!(
            (response.status, response.code().as_str()),
            (504, "deadline_exceeded")
        );
    }

    #[test]
    fn a_client_that_goes_away_frees_its_memory() {
        let rig = endless();
        for body in [STREAM, WHOLE] {
            let mut wire = rig.connect();
            wire.send(post("/v1/infill", body));
            if body == STREAM {
                assert_eq!(wire.head().status, 200);
                wire.chunk().expect("text");
            }
            wait(|| rig.sequences() == 1);
            drop(wire);
            let at = rig.steps();
            wait(|| rig.sequences() == 0);
            // One step is under way when the connection is closed; a loaded machine may be late to say so.
            assert!(rig.steps() - at <= 1000, "it was computed to the end");
            wait(|| rig.figure("glmd_kv_used_bytes") == 0.0);
        }
        let status = rig.get("/v1/status").json();
        assert_eq!(status["requests"]["cancelled"], 2);
        assert_eq!(status["running"], serde_json::json!([]));
    }

    #[test]
    fn a_client_that_dies_with_more_requests_on_the_way_is_noticed_too() {
        let rig = endless();
        let mut wire = rig.connect();
        wire.send(post("/v1/infill", WHOLE) + "GET /health/live HTTP/1.1\r\n");
        wait(|| rig.sequences() == 1);
        drop(wire);
        wait(|| rig.sequences() == 0);
    }

    #[test]
    fn a_client_that_only_says_no_more_is_answered() {
        let rig = Rig::usual();
        *rig.script.step_time.lock().expect("unused") = Duration::from_millis(50);
        let mut wire = rig.connect();
        wire.send(post("/v1/infill", r#"{"text":"the lamp in the [MASK]"}"#));
        wire.stream
            .get_ref()
            .shutdown(Shutdown::Write)
            .expect("open");
        assert_eq!(wire.response().status, 200);
        assert!(wire.at_end());
    }

    #[test]
    fn a_reader_that_sleeps_is_given_up_and_others_are_not_disturbed() {
        let script = Arc::new(Script::default());
        script.endless.store(true, Ordering::SeqCst);
        let rig = Rig::scripted(
            |config| {
                config.engine.unread_tokens = 64;
                config.http.write_timeout_s = 1;
                // On a busy machine the engine is ahead before the kernel's buffer is full; then the
                // answer ends and the connection idles.
                config.http.head_timeout_s = 2;
            },
            script,
        );
        let mut sleeper = rig.connect();
        // Every token comes with twenty alternatives: the kernel's buffer is soon full.
        let body = r#"{"prompt":"the lamp","stream":true,"max_tokens":4000,"logprobs":20}"#;
        sleeper.send(post("/v1/completions", body));
        wait(|| rig.sequences() == 1);
        let other = r#"{"text":"the lamp in the [MASK]","max_tokens":5}"#;
        assert_eq!(rig.post("/v1/infill", other).status, 200);
        wait(|| rig.sequences() == 0);
        wait(|| rig.figure("glmd_http_connections") <= 1.0);
        let status = rig.get("/v1/status").json();
        assert_eq!(status["requests"]["cancelled"], 1);
        drop(sleeper);
    }

    #[test]
    fn requests_are_listed_and_cancelled_by_their_identity() {
        let rig = endless();
        let mut wire = rig.connect();
        wire.send(post("/v1/infill", STREAM));
        assert_eq!(wire.head().status, 200);
        let first = wire.chunk().expect("text");
        let first = String::from_utf8(first).expect("text");
        let id = first.split('"').nth(3).expect("an id").to_owned();
        let status = rig.get("/v1/status").json();
        assert_eq!(status["running"][0]["id"], id.as_str());
        let mut order = rig.connect();
        order.send(format!("DELETE /v1/requests/{id} HTTP/1.1\r\n\r\n"));
        assert_eq!(order.response().json()["status"], "cancelled");
        let mut body = first.into_bytes();
        while let Some(chunk) = wire.chunk() {
            body.extend(chunk);
        }
        let all = events(&body);
        let last = all.last().expect("an error");
        assert_eq!(last["error"]["code"], "cancelled");
        order.send(format!("DELETE /v1/requests/{id} HTTP/1.1\r\n\r\n"));
        assert_eq!(order.response().code(), "request_not_found");
        wait(|| rig.sequences() == 0);
    }
}
