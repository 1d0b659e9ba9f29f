//! The program with a real model, as `make run` starts it: answers, survives the death of its clients, leaves a socket
//! that the next start takes over, and ends when it is told to.

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::os::unix::net::UnixStream;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};

    use glm_onnx::export::{Options, export};

    use crate::support::{PATIENCE, Response, Wire, events, post, wait};

    /// A model directory made of a fixture, and a place for a socket.
    struct Place {
        folder: tempfile::TempDir,
    }

    impl Place {
        /// A checkpoint of the fixtures, exported; `None` where no libonnxruntime can be had.
        fn new(checkpoint: &str) -> Option<Self> {
            if std::env::var_os("ORT_DYLIB_PATH").is_none_or(|path| !Path::new(&path).exists()) {
                eprintln!("skipped: ORT_DYLIB_PATH names no libonnxruntime");
                return None;
            }
            let folder = tempfile::tempdir().expect("a folder");
            let checkpoints = concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../tests/fixtures/checkpoints"
            );
            let checkpoint = Path::new(checkpoints).join(checkpoint);
            let options = Options {
                name: Some("tiny".to_owned()),
                ..Options::default()
            };
            let out = folder.path().join("model");
            export(&checkpoint, &out, &options, &|_| ControlFlow::Continue(())).expect("a model");
            Some(Self { folder })
        }

        fn socket(&self) -> PathBuf {
            self.folder.path().join("glmd.sock")
        }

        fn start(&self) -> Daemon {
            let child = Command::new(env!("CARGO_BIN_EXE_glmd"))
                .arg("--model")
                .arg(self.folder.path().join("model"))
                .arg("--socket")
                .arg(self.socket())
                .stderr(Stdio::null())
                .spawn()
                .expect("it starts");
            Daemon(child)
        }

        fn ask(&self, request: &str) -> Response {
            let mut wire = Wire::new(UnixStream::connect(self.socket()).expect("it listens"));
            wire.send(request);
            wire.response()
        }

        fn wait_until_ready(&self) {
            wait(|| {
                UnixStream::connect(self.socket()).is_ok()
                    && self.ask("GET /health/ready HTTP/1.1\r\n\r\n").status == 200
            });
        }
    }

    struct Daemon(Child);

    impl Daemon {
        fn signal(&self, name: &str) {
            let id = self.0.id().to_string();
            let status = Command::new("kill").args(["-s", name, &id]).status();
            assert!(status.expect("kill").success());
        }

        fn end(mut self) -> Option<i32> {
            let start = std::time::Instant::now();
            while start.elapsed() < PATIENCE {
                if let Some(status) = self.0.try_wait().expect("a child") {
                    return status.code();
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            panic!("it does not end");
        }
    }

    impl Drop for Daemon {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_model_is_served_from_start_to_end() {
        let Some(place) = Place::new("glm-post") else {
            return;
        };
        let daemon = place.start();
        place.wait_until_ready();
        let status = place.ask("GET /v1/status HTTP/1.1\r\n\r\n").json();
        assert_eq!(status["model"]["quantisation"], "f32");
        let infill = post(
            "/v1/infill",
            r#"{"text":"the lamp in the [MASK]","max_tokens":4}"#,
        );
        let answer = place.ask(&infill);
        assert_eq!(answer.status, 200, "{:?}", answer.json());
        let first = answer.json();
        assert!(first["usage"]["completion_tokens"].as_u64() > Some(0));
        let classify = post(
            "/v1/classify",
            r#"{"text":"the lamp","pattern":"{text} is in the [MASK].","labels":{"a":["kitchen"],"b":["garage"]}}"#,
        );
        let verdict = place.ask(&classify).json();
        let sum: f64 = ["a", "b"]
            .iter()
            .filter_map(|l| verdict["scores"][l].as_f64())
            .sum();
        assert!((sum - 1.0).abs() < 1e-9, "{verdict}");

        // A second daemon on the same socket is refused and disturbs nothing.
        assert_eq!(place.start().end(), Some(69));
        assert_eq!(place.ask(&infill).json()["text"], first["text"]);

        // Killed outright it leaves its socket, which the next one takes over.
        daemon.signal("KILL");
        daemon.end();
        assert!(place.socket().exists());
        let daemon = place.start();
        place.wait_until_ready();
        assert_eq!(place.ask(&infill).json()["text"], first["text"]);

        // Loaded anew it answers the same.
        daemon.signal("HUP");
        wait(|| place.ask(&infill).status == 200);
        assert_eq!(place.ask(&infill).json()["text"], first["text"]);

        daemon.signal("TERM");
        assert_eq!(daemon.end(), Some(0));
        assert!(!place.socket().exists());
    }

    #[test]
    fn an_end_while_a_model_is_on_its_way_is_a_good_end() {
        let Some(place) = Place::new("glm-post") else {
            return;
        };
        for round in 0..8 {
            let daemon = place.start();
            place.wait_until_ready();
            daemon.signal("HUP");
            // Somewhere between reading the configuration and testing the model.
            std::thread::sleep(std::time::Duration::from_millis(10 * round));
            daemon.signal("TERM");
            assert_eq!(daemon.end(), Some(0), "round {round}");
        }
    }

    #[test]
    fn a_conversation_is_answered_whole_and_in_pieces() {
        let Some(place) = Place::new("glm-edge") else {
            return;
        };
        let daemon = place.start();
        place.wait_until_ready();
        let body = |more: &str| {
            let messages = r#"[{"role":"system","content":"be brief"},
                {"role":"user","content":[{"type":"text","text":"the lamp"}]}]"#;
            post(
                "/v1/chat/completions",
                &format!(r#"{{"messages":{messages},"max_tokens":8,"seed":4{more}}}"#),
            )
        };
        let whole = place
            .ask(&body(r#","logprobs":true,"top_logprobs":2"#))
            .json();
        assert_eq!(whole["object"], "chat.completion");
        let choice = &whole["choices"][0];
        assert_eq!(choice["message"]["role"], "assistant");
        let scored = choice["logprobs"]["content"]
            .as_array()
            .expect("log-probabilities");
        assert_eq!(scored[0]["top_logprobs"].as_array().map(Vec::len), Some(2));
        let stream = place.ask(&body(r#","stream":true"#));
        let chunks = events(&stream.body);
        assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
        let said: String = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
            .collect();
        assert_eq!(choice["message"]["content"], said.as_str());
        let last = chunks.last().expect("a chunk");
        assert_eq!(last["choices"][0]["finish_reason"], choice["finish_reason"]);

        let format = r#","response_format":{"type":"choice","choices":["lamp","fan"]}"#;
        let held = place.ask(&body(format)).json();
        let content = held["choices"][0]["message"]["content"]
            .as_str()
            .expect("text");
        assert!(["lamp", "fan"].contains(&content.trim()), "{held}");

        let wrong = post(
            "/v1/chat/completions",
            r#"{"messages":[{"role":"robot","content":"x"}]}"#,
        );
        assert_eq!(place.ask(&wrong).json()["error"]["param"], "messages");
        daemon.signal("TERM");
        assert_eq!(daemon.end(), Some(0));
    }
}
