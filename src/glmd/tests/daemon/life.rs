//! The life of a daemon: drain, reload, unload, quotas, TCP.

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read, Write};
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use glmd::config::Tcp;
    use glmd::{Error, Signal};

    use crate::support::{Rig, Script, post, wait};

    const INFILL: &str = r#"{"text":"the lamp in the [MASK]"}"#;

    #[test]
    fn what_was_accepted_is_answered_before_the_end() {
        let rig = Rig::usual();
        *rig.script.step_time.lock().expect("unused") = Duration::from_millis(100);
        let mut wire = rig.connect();
        wire.send(post("/v1/infill", INFILL));
        wait(|| rig.sequences() == 1);
        rig.signal(Signal::Stop);
        let response = wire.response();
        assert_eq!(response.status, 200, "{:?}", response.json());
        assert!(wire.at_end(), "no more requests on this connection");
        let socket = rig.socket.clone();
        rig.join().expect("a clean end");
        assert!(!socket.exists());
    }

    #[test]
    fn what_has_not_begun_is_told_at_once() {
        let script = Arc::new(Script::default());
        script.endless.store(true, Ordering::SeqCst);
        *script.step_time.lock().expect("unused") = Duration::from_millis(20);
        let rig = Rig::scripted(|config| config.engine.sequences = 1, script);
        let body = r#"{"text":"the [MASK]","max_tokens":100}"#;
        let mut running = rig.connect();
        running.send(post("/v1/infill", body));
        wait(|| rig.sequences() == 1);
        let mut waiting = rig.connect();
        waiting.send(post("/v1/infill", body));
        wait(|| rig.get("/v1/status").json()["requests"]["queued"] == 1);
        rig.signal(Signal::Stop);
        let told = waiting.response();
        assert_eq!((told.status, told.code().as_str()), (503, "shutting_down"));
        assert_eq!(rig.sequences(), 1, "the other one still runs");
        assert_eq!(running.response().status, 200);
        rig.join().expect("a clean end");
    }

    #[test]
    fn a_model_that_nobody_asks_is_unloaded_until_somebody_does() {
        let rig = Rig::with(|config| config.engine.idle_unload_s = 1);
        let phase = || rig.get("/v1/status").json()["phase"].clone();
        wait(|| phase() == "idle");
        assert!(rig.figure("glmd_model_loaded") < 0.5);
        assert_eq!(rig.get("/health/ready").status, 200, "it would answer");
        assert_eq!(rig.get("/v1/models").json()["data"][0]["object"], "model");
        let answer = rig.post("/v1/infill", INFILL);
        assert_eq!(answer.status, 200, "{:?}", answer.json());
        wait(|| phase() == "idle");
    }

    #[test]
    fn the_drain_has_an_end() {
        let script = Arc::new(Script::default());
        script.endless.store(true, Ordering::SeqCst);
        *script.step_time.lock().expect("unused") = Duration::from_millis(5);
        let rig = Rig::scripted(|config| config.shutdown.drain_s = 1, script);
        let mut wire = rig.connect();
        wire.send(post(
            "/v1/infill",
            r#"{"text":"the [MASK]","max_tokens":4000}"#,
        ));
        wait(|| rig.sequences() == 1);
        rig.signal(Signal::Stop);
        let response = wire.response();
        assert_eq!(
            (response.status, response.code().as_str()),
            (503, "shutting_down")
        );
        rig.join().expect("a clean end");
    }

    #[test]
    fn asked_twice_it_ends_at_once() {
        let script = Arc::new(Script::default());
        script.endless.store(true, Ordering::SeqCst);
        *script.step_time.lock().expect("unused") = Duration::from_millis(5);
        let rig = Rig::scripted(|config| config.shutdown.drain_s = 3600, script);
        let mut wire = rig.connect();
        wire.send(post(
            "/v1/infill",
            r#"{"text":"the [MASK]","max_tokens":4000}"#,
        ));
        wait(|| rig.sequences() == 1);
        rig.signal(Signal::Stop);
        rig.signal(Signal::Stop);
        rig.join().expect("a clean end");
    }

    #[test]
    fn without_a_model_there_is_no_daemon() {
        let script = Arc::new(Script::default());
        script.broken.store(true, Ordering::SeqCst);
        let rig = Rig::unready(|_| {}, script);
        let error = rig.join().expect_err("no model");
        assert!(matches!(error, Error::Model(_)), "{error}");
        assert_eq!((error.code(), error.exit_status()), ("load_failed", 70));
    }

    #[test]
    fn a_reload_that_fails_changes_nothing() {
        let rig = Rig::usual();
        let loads = || rig.script.loads.load(Ordering::SeqCst);
        let reloaded = rig.post("/admin/reload", "").json();
        assert_eq!(reloaded["old_served"], true, "{reloaded}");
        assert_eq!(loads(), 2);
        rig.signal(Signal::Reload);
        wait(|| loads() == 3);
        wait(|| rig.get("/health/ready").status == 200);
        let before = rig.post("/v1/infill", INFILL).json()["text"].clone();
        rig.script.broken_once.store(true, Ordering::SeqCst);
        let response = rig.post("/admin/reload", "");
        assert_eq!(
            (response.status, response.code().as_str()),
            (500, "load_failed")
        );
        assert_eq!(loads(), 4, "the old one was never gone");
        assert_eq!(rig.get("/health/ready").status, 200);
        assert_eq!(rig.post("/v1/infill", INFILL).json()["text"], before);
    }

    #[test]
    fn an_unloaded_model_is_missed_until_it_is_reloaded() {
        let rig = Rig::usual();
        assert_eq!(rig.post("/admin/unload", "").json()["status"], "unloaded");
        let ready = rig.get("/health/ready");
        assert_eq!((ready.status, ready.code().as_str()), (503, "not_ready"));
        let response = rig.post("/v1/infill", INFILL);
        assert_eq!(
            (response.status, response.code().as_str()),
            (503, "model_not_loaded")
        );
        assert!(response.header("retry-after").is_some());
        assert_eq!(rig.get("/health/live").status, 200);
        assert_eq!(rig.post("/admin/reload", "").status, 200);
        assert_eq!(rig.post("/v1/infill", INFILL).status, 200);
    }

    #[test]
    fn a_user_has_a_share() {
        let script = Arc::new(Script::default());
        script.endless.store(true, Ordering::SeqCst);
        *script.step_time.lock().expect("unused") = Duration::from_millis(2);
        let rig = Rig::scripted(|config| config.http.requests_per_user = 1, script);
        let mut wire = rig.connect();
        let stream = r#"{"text":"the [MASK]","stream":true,"max_tokens":4000}"#;
        wire.send(post("/v1/infill", stream));
        assert_eq!(wire.head().status, 200);
        let refused = rig.post("/v1/infill", INFILL);
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (429, "overloaded")
        );
        assert_eq!(refused.header("retry-after"), Some("1"));
        assert_eq!(rig.get("/v1/status").status, 200, "looking is free");
        drop(wire);
        rig.script.endless.store(false, Ordering::SeqCst);
        wait(|| rig.post("/v1/infill", INFILL).status == 200);
    }

    #[test]
    fn tcp_wants_the_token_and_gives_no_orders() {
        let token = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(token.path(), "a-token-of-24-characters").expect("written");
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = free.local_addr().expect("an address");
        drop(free);
        let rig = Rig::with(|config| {
            config.http.tcp = Some(Tcp {
                listen: address,
                token_file: token.path().to_owned(),
            })
        });
        let ask = |request: &str| {
            let mut stream = TcpStream::connect(address).expect("a connection");
            stream.write_all(request.as_bytes()).expect("sent");
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("an answer");
            text
        };
        let with = "authorization: Bearer a-token-of-24-characters\r\nconnection: close\r\n";
        let live = "GET /health/live HTTP/1.1\r\n";
        assert!(ask(&format!("{live}{with}\r\n")).starts_with("HTTP/1.1 200"));
        assert!(ask(&format!("{live}connection: close\r\n\r\n")).starts_with("HTTP/1.1 401"));
        let order = format!("POST /admin/unload HTTP/1.1\r\n{with}\r\n");
        assert!(ask(&order).starts_with("HTTP/1.1 403"));
        assert_eq!(rig.get("/health/ready").status, 200);
    }

    #[test]
    fn half_open_connections_do_not_hold_up_the_end() {
        let rig = Rig::usual();
        let idle: Vec<UnixStream> = (0..20)
            .map(|_| UnixStream::connect(&rig.socket).expect("a connection"))
            .collect();
        let mut half = BufReader::new(UnixStream::connect(&rig.socket).expect("a connection"));
        half.get_mut()
            .write_all(b"POST /v1/infill HTTP/1.1\r\ncontent-length: 9\r\n\r\n{")
            .expect("sent");
        wait(|| rig.figure("glmd_http_connections") >= 21.0);
        rig.signal(Signal::Stop);
        rig.join().expect("a clean end");
        drop(idle);
    }
}
