//! Raw bytes on the socket: what is well formed is answered, what is not gets a clear error or a bounded close, and
//! nothing of it disturbs the daemon.

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Shutdown;

    use crate::support::{Rig, Wire, post, wait};

    const INFILL: &str = r#"{"text":"the lamp in the [MASK]"}"#;

    #[test]
    fn probes_and_figures_are_there() {
        let rig = Rig::usual();
        assert_eq!(rig.get("/health/live").json()["status"], "live");
        assert_eq!(rig.get("/health/ready").json()["status"], "ready");
        let models = rig.get("/v1/models").json();
        assert_eq!(models["data"][0]["id"], "fake");
        assert_eq!(rig.get("/v1/models/fake").status, 200);
        assert_eq!(rig.get("/v1/models/other").code(), "model_not_found");
        let status = rig.get("/v1/status").json();
        assert_eq!(status["phase"], "ready");
        assert_eq!(status["model"]["family"], "glm");
        rig.post("/v1/infill", INFILL);
        assert!(rig.figure("glmd_tokens_sampled_total") > 0.0);
        let metrics = rig.get("/metrics");
        let text = String::from_utf8(metrics.body.clone()).expect("text");
        assert!(text.ends_with("# EOF\n"));
        let line = r#"glmd_requests_total{op="infill",transport="unix",outcome="ok"} 1"#;
        assert!(text.contains(line), "{text}");
        for name in [
            "glmd_request_duration_seconds_bucket",
            "glmd_time_to_first_token_seconds_sum",
            "glmd_queue_wait_seconds_count",
            "glmd_queue_tokens",
            "glmd_batch_limit",
            "glmd_batch_size",
            "glmd_memory_reserved_bytes",
            "glmd_process_anonymous_bytes",
            "glmd_pressure_level",
            "glmd_preemptions_total",
        ] {
            assert!(text.contains(name), "{name} is missing");
        }
    }

    #[test]
    fn wrong_ways_are_told_apart() {
        let rig = Rig::usual();
        assert_eq!(rig.get("/v1/nothing").code(), "route_not_found");
        let wrong = rig.get("/v1/infill");
        assert_eq!((wrong.status, wrong.header("allow")), (405, Some("POST")));
        let mut wire = rig.connect();
        wire.send("HEAD /health/live HTTP/1.1\r\n\r\nGET /health/live HTTP/1.1\r\n\r\n");
        assert_eq!(wire.head().status, 200);
        assert_eq!(wire.response().json()["status"], "live");
    }

    #[test]
    fn requests_in_a_row_are_answered_in_order() {
        let rig = Rig::usual();
        let mut wire = rig.connect();
        let three = [
            post("/v1/infill", INFILL),
            "GET /health/live HTTP/1.1\r\n\r\n".to_owned(),
            post("/v1/infill", r#"{"text":"no blank"}"#),
        ];
        wire.send(three.concat());
        assert!(wire.response().json()["blanks"][0]["text"].is_string());
        assert_eq!(wire.response().json()["status"], "live");
        assert_eq!(wire.response().status, 400);
        // The connection is still good, whatever host it claims to ask.
        wire.send("GET /health/live HTTP/1.1\r\nhost: evil.example\r\nx-request-id: abc-1\r\n\r\n");
        let last = wire.response();
        assert_eq!(
            (last.status, last.header("x-request-id")),
            (200, Some("abc-1"))
        );
    }

    #[test]
    fn bytes_may_come_one_by_one() {
        let rig = Rig::usual();
        let mut wire = rig.connect();
        for byte in post("/v1/infill", INFILL).bytes() {
            wire.send([byte]);
        }
        assert_eq!(wire.response().status, 200);
    }

    #[test]
    fn chunked_bodies_are_read_too() {
        let rig = Rig::usual();
        let mut wire = rig.connect();
        wire.send("POST /v1/infill HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n");
        for piece in [&INFILL[..7], &INFILL[7..]] {
            wire.send(format!("{:x}\r\n{piece}\r\n", piece.len()));
        }
        wire.send("0\r\n\r\n");
        assert_eq!(wire.response().status, 200);
    }

    #[test]
    fn what_is_not_http_is_refused_and_closed() {
        let rig = Rig::usual();
        let bad = [
            "\x16\x03\x01\x02\x00\x01",
            "GET /health/live\r\n\r\n\r\n",
            "GET /health/live HTTP/9.9\r\n\r\n",
            "POST /v1/infill HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
            "POST /v1/infill HTTP/1.1\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
            "POST /v1/infill HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
            "GET / HTTP/1.1\r\nbad header\r\n\r\n",
            "GET / HTTP/1.1\r\na\x01b: c\r\n\r\n",
        ];
        for bytes in bad {
            let mut wire = rig.connect();
            wire.send(bytes);
            assert_eq!(wire.head().status, 400, "{bytes:?}");
        }
        let mut wire = rig.connect();
        let long = format!(
            "GET /health/live HTTP/1.1\r\na: {}\r\n\r\n",
            "x".repeat(20 << 10)
        );
        wire.send(long);
        assert_eq!(wire.response().status, 431);
        assert!(wire.at_end());
        let mut wire = rig.connect();
        let many: String = (0..100).map(|i| format!("h{i}: x\r\n")).collect();
        wire.send(format!("GET /health/live HTTP/1.1\r\n{many}\r\n"));
        assert_eq!(wire.head().status, 431);
        assert_eq!(rig.get("/health/live").status, 200);
    }

    #[test]
    fn bad_bodies_get_an_error_that_names_the_mistake() {
        let rig = Rig::usual();
        let cases: [(&[u8], &str, &str); 12] = [
            (b"", "bad_input", "empty"),
            (b"\xff\xfe{}", "bad_input", "UTF-8"),
            (
                b"{\"text\":\"a [MASK]\",\"temprature\":1}",
                "bad_input",
                "temprature",
            ),
            (
                b"{\"text\":\"a [MASK]\",\"temperature\":NaN}",
                "bad_input",
                "expected",
            ),
            (
                b"{\"text\":\"a [MASK]\",\"temperature\":-1}",
                "bad_input",
                "temperature",
            ),
            (
                b"{\"text\":\"a [MASK]\",\"top_p\":1e30}",
                "bad_input",
                "top_p",
            ),
            (
                b"{\"text\":\"a [MASK]\",\"seed\":1e999}",
                "bad_input",
                "out of range",
            ),
            (b"{\"text\":\"a [MASK]\",\"n\":0}", "bad_input", "n"),
            (
                b"{\"text\":\"a [MASK]\",\"max_tokens\":0}",
                "bad_input",
                "max_tokens",
            ),
            (
                b"{\"text\":\"a [MASK]\",\"stop\":[\"\"]}",
                "bad_input",
                "stop",
            ),
            (b"{\"text\":5}", "bad_input", "string"),
            (b"{\"text\":\"a [MASK]\"} trailing", "bad_input", "trailing"),
        ];
        let mut wire = rig.connect();
        for (body, code, told) in cases {
            let head = format!(
                "POST /v1/infill HTTP/1.1\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            wire.send(head);
            wire.send(body);
            let response = wire.response();
            let shown = String::from_utf8_lossy(body);
            assert_eq!(response.status, 400, "{shown}");
            assert_eq!(response.code(), code, "{shown}");
            let error = response.json()["error"].clone();
            assert_eq!(error["type"], "invalid_request_error", "{shown}");
            let message = error["message"].as_str().expect("a message");
            assert!(message.contains(told), "{shown}: {message}");
        }
        assert_eq!(rig.steps(), 0, "nothing of it reached the model");
    }

    #[test]
    fn a_mebibyte_of_brackets_is_an_error_like_another() {
        let rig = Rig::usual();
        let body = "[".repeat(1 << 20);
        let response = rig.post("/v1/infill", &body);
        assert_eq!(response.status, 400);
        assert!(
            response.json()["error"]["message"]
                .as_str()
                .expect("text")
                .contains("nested")
        );
        let body = format!(r#"{{"text":"{}"}}"#, "x".repeat(1 << 20));
        let response = rig.post("/v1/infill", &body);
        assert_eq!(
            (response.status, response.code().as_str()),
            (413, "body_too_large")
        );
        assert_eq!(response.header("connection"), Some("close"));
    }

    #[test]
    fn a_body_that_never_ends_is_given_up() {
        let rig = Rig::with(|config| config.http.body_timeout_s = 1);
        let mut wire = rig.connect();
        wire.send("POST /v1/infill HTTP/1.1\r\ncontent-length: 500\r\n\r\n{\"text\":");
        let response = wire.response();
        assert_eq!(
            (response.status, response.code().as_str()),
            (408, "body_timeout")
        );
        assert!(wire.at_end());
        // One that ends early: the client has closed, so nobody is told.
        let mut wire = rig.connect();
        wire.send("POST /v1/infill HTTP/1.1\r\ncontent-length: 500\r\n\r\n{\"text\":");
        wire.stream
            .get_ref()
            .shutdown(Shutdown::Write)
            .expect("open");
        assert_eq!(wire.response().code(), "bad_body");
        // A length that is too short: the rest is no request.
        let mut wire = rig.connect();
        wire.send("POST /v1/infill HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}\x00\x00\r\n\r\n");
        assert_eq!(wire.response().status, 400);
        assert_eq!(wire.head().status, 400);
        // A length that would take the memory of all.
        let mut wire = rig.connect();
        wire.send("POST /v1/infill HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n{}");
        assert_eq!(wire.response().status, 413);
    }

    #[test]
    fn a_head_that_never_ends_is_given_up() {
        let rig = Rig::with(|config| config.http.head_timeout_s = 1);
        let mut silent = rig.connect();
        let mut slow = rig.connect();
        slow.send("GET /health/live HTTP/1.1\r\nx: ");
        assert!(silent.at_end());
        // hyper says 408 or nothing before it closes.
        let mut rest = Vec::new();
        let _ = std::io::Read::read_to_end(&mut slow.stream, &mut rest);
        assert!(
            rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"),
            "{rest:?}"
        );
        wait(|| rig.figure("glmd_http_connections") <= 1.0);
    }

    #[test]
    fn too_many_connections_are_turned_away_and_come_back_later() {
        let rig = Rig::with(|config| config.http.connections = 8);
        // The rig's own connection may not be closed yet.
        wait(|| rig.get("/v1/status").status == 200);
        let mut held: Vec<Wire> = Vec::new();
        let mut refused = 0;
        for _ in 0..200 {
            let mut wire = rig.connect();
            // It may have been closed already.
            let _ = wire
                .stream
                .get_mut()
                .write_all(b"GET /health/live HTTP/1.1\r\n\r\n");
            let response = wire.response();
            match response.status {
                200 => held.push(wire),
                503 => {
                    assert_eq!(response.header("retry-after"), Some("1"));
                    assert_eq!(response.code(), "overloaded");
                    refused += 1;
                }
                other => panic!("{other}"),
            }
        }
        assert!(held.len() <= 8 && refused >= 192, "{} held", held.len());
        drop(held);
        wait(|| rig.get("/health/live").status == 200);
        assert!(rig.figure("glmd_http_connections_refused_total") >= 192.0);
    }

    #[test]
    fn thousands_of_connections_one_after_the_other_leave_nothing() {
        let rig = Rig::usual();
        let mut warm = u64::MAX;
        for index in 0..10_000 {
            let mut wire = rig.connect();
            if index % 3 == 0 {
                wire.send("GET /hea");
            }
            if index == 2_000 {
                warm = glmd::process::memory().anonymous;
            }
        }
        wait(|| rig.figure("glmd_http_connections") <= 1.0);
        // 2 KiB for each of the last 8,000: a connection that stays has more. Other tests of this
        // process take some too.
        let grown = glmd::process::memory().anonymous.saturating_sub(warm);
        assert!(grown < 16 << 20, "{grown} bytes more");
        assert_eq!(rig.post("/v1/infill", INFILL).status, 200);
    }

    #[test]
    fn memory_for_bodies_is_shared() {
        let rig = Rig::with(|config| {
            config.http.body_bytes = 64 << 10;
            config.http.body_bytes_total = 64 << 10;
        });
        let mut first = rig.connect();
        let half = "x".repeat(40 << 10);
        first.send(format!(
            "POST /v1/infill HTTP/1.1\r\ncontent-length: {}\r\n\r\n{half}",
            50 << 10
        ));
        // Until the first has been read, a second finds room too.
        wait(|| {
            let response = rig.post("/v1/infill", &half);
            match response.status {
                400 => false,
                429 => response.header("retry-after") == Some("1"),
                other => panic!("{other}"),
            }
        });
        drop(first);
        wait(|| rig.post("/v1/infill", &half).status == 400);
    }

    #[test]
    fn encodings_that_are_not_read_are_refused() {
        let rig = Rig::usual();
        let mut wire = rig.connect();
        wire.send(
            "POST /v1/infill HTTP/1.1\r\ncontent-encoding: gzip\r\ncontent-length: 0\r\n\r\n",
        );
        assert_eq!(wire.response().status, 415);
    }
}
