//! The program with a real model, as `make run` starts it: answers, survives the death of its clients, leaves a socket
//! that the next start takes over, and ends when it is told to.

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::os::unix::net::UnixStream;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};

    use glm_onnx::export::{Options, export};

    use crate::support::{PATIENCE, Response, Wire, post, wait};

    /// A model directory made of a fixture, and a place for a socket.
    struct Place {
        folder: tempfile::TempDir,
    }

    impl Place {
        /// `None` where no libonnxruntime can be had.
        fn new() -> Option<Self> {
            if std::env::var_os("ORT_DYLIB_PATH").is_none_or(|path| !Path::new(&path).exists()) {
                eprintln!("skipped: ORT_DYLIB_PATH names no libonnxruntime");
                return None;
            }
            let folder = tempfile::tempdir().expect("a folder");
            let checkpoint = concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../tests/fixtures/checkpoints/glm-post"
            );
            let options = Options {
                name: Some("tiny".to_owned()),
                ..Options::default()
            };
            let out = folder.path().join("model");
            export(Path::new(checkpoint), &out, &options, &|_| {
                ControlFlow::Continue(())
            })
            .expect("a model");
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
        let Some(place) = Place::new() else { return };
        let daemon = place.start();
        place.wait_until_ready();
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
}
