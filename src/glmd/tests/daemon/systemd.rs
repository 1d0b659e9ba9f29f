//! The protocols of systemd, spoken by the program itself with a manager that is not systemd.

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::ops::ControlFlow;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
    use std::path::Path;
    use std::process::Command;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use glm_onnx::export::{Options, export};

    use crate::manager::{Manager, Told};
    use crate::support::{Response, Rig, Script, Wire, post, wait};

    /// `WATCHDOG_USEC` of these tests: a step may take so long, in microseconds.
    const WATCHDOG: u64 = 1_000_000;
    const INFILL: &str = r#"{"text":"the lamp in the [MASK]"}"#;
    /// Says to this program that it is the daemon of another test.
    const PLAY: &str = "GLMD_TEST_PLAYS_DAEMON";

    /// glmd's arguments for a small model that runs without libonnxruntime.
    fn arguments(manager: &Manager) -> Vec<String> {
        let checkpoint = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/checkpoints/glm-post"
        );
        let out = manager.path("model");
        let options = Options {
            name: Some("tiny".to_owned()),
            ..Options::default()
        };
        export(Path::new(checkpoint), &out, &options, &|_| {
            ControlFlow::Continue(())
        })
        .expect("a model");
        let text = |name| manager.path(name).to_str().expect("UTF-8").to_owned();
        ["--model", &text("model"), "--socket", &text("glmd.sock")]
            .into_iter()
            .chain(["--set", "model.backend=tract-paged"])
            .map(str::to_owned)
            .collect()
    }

    fn ask(socket: &Path, request: &str) -> Response {
        let mut wire = Wire::new(UnixStream::connect(socket).expect("it listens"));
        wire.send(request);
        wire.response()
    }

    fn refs(arguments: &[String]) -> Vec<&str> {
        arguments.iter().map(String::as_str).collect()
    }

    #[test]
    fn the_manager_is_told_of_the_whole_life() {
        let manager = Manager::new();
        let arguments = arguments(&manager);
        let watchdog = WATCHDOG.to_string();
        let environment = [("WATCHDOG_USEC", watchdog.as_str()), ("WATCHDOG_PID", "$$")];
        let unit = manager.start(&refs(&arguments), &environment, None);

        let start = manager.until_ready();
        let (last, before) = start.split_last().expect("it is ready");
        assert!(!before.is_empty());
        for told in before {
            assert!(told.says("EXTEND_TIMEOUT_USEC", "30000000"), "{told:?}");
        }
        assert!(last.get("STATUS").is_some_and(|line| line.contains("tiny")));
        assert_eq!(
            ask(&manager.path("glmd.sock"), &post("/v1/infill", INFILL)).status,
            200
        );

        let ping = |told: &Told| told.says("WATCHDOG", "1");
        manager.until(ping);
        manager.until(ping);
        let lines = manager.until(|told| {
            told.get("STATUS")
                .is_some_and(|line| line.contains("tract-paged"))
        });
        assert!(lines.last().is_some_and(|told| told.get("READY").is_none()));

        unit.signal("HUP");
        let reload = manager.until(|told| told.says("RELOADING", "1"));
        // Type=notify-reload wants both in one datagram.
        let since = reload.last().and_then(|told| told.get("MONOTONIC_USEC"));
        assert!(since.is_some_and(|time| time.parse::<u64>().is_ok_and(|time| time > 0)));
        manager.until_ready();

        unit.signal("TERM");
        let end = manager.until(|told| told.says("STOPPING", "1"));
        assert!(end.last().is_some_and(|told| told.get("STATUS").is_some()));
        assert_eq!(unit.wait(), Some(0));
        let after = manager.next_within(Duration::from_millis(1));
        assert_eq!(after, None, "nothing is told after the end");
    }

    #[test]
    fn only_who_is_watched_gives_signs_of_life() {
        let watchdog = WATCHDOG.to_string();
        let someone_else = [("WATCHDOG_USEC", watchdog.as_str()), ("WATCHDOG_PID", "1")];
        for environment in [&[][..], &someone_else] {
            let manager = Manager::new();
            let arguments = arguments(&manager);
            let _unit = manager.start(&refs(&arguments), environment, None);
            manager.until_ready();
            // Longer than two pings would need; a slow machine only makes this easier.
            while let Some(told) = manager.next_within(Duration::from_micros(WATCHDOG * 3 / 2)) {
                assert_eq!(told.get("WATCHDOG"), None);
            }
        }
    }

    /// Not a test by itself: the daemon of [`a_run_that_hangs_gives_no_sign_of_life`], in a process with an
    /// environment of its own.
    #[test]
    fn daemon_of_another_test() {
        let Some(socket) = std::env::var_os(PLAY) else {
            return;
        };
        let script = Arc::new(Script::default());
        let _rig = Rig::scripted(
            |config| config.http.socket = socket.into(),
            Arc::clone(&script),
        );
        // The first step never ends; the kill of the test ends it.
        *script.step_time.lock().expect("unused") = Duration::from_secs(3600);
        wait(|| script.steps.load(Ordering::SeqCst) > 0);
    }

    #[test]
    fn a_run_that_hangs_gives_no_sign_of_life() {
        let manager = Manager::new();
        let socket = manager.path("hung.sock");
        let watchdog = WATCHDOG.to_string();
        let environment = [
            ("WATCHDOG_USEC", watchdog.as_str()),
            (PLAY, socket.to_str().expect("UTF-8")),
        ];
        let test = ["--exact", "systemd::tests::daemon_of_another_test"];
        let program = std::env::current_exe().expect("this program");
        let _unit = manager.start_program(&program, &test, &environment, None);
        manager.until_ready();
        // Idle for longer than the watchdog's time: alive.
        for _ in 0..4 {
            manager.until(|told| told.says("WATCHDOG", "1"));
        }
        let mut wire = Wire::new(UnixStream::connect(&socket).expect("it listens"));
        wire.send(post("/v1/infill", INFILL));
        // A step may take the watchdog's time; then there are no more pings, although transports live.
        let silence = Duration::from_micros(3 * WATCHDOG);
        let is_ping = |told: &Told| told.says("WATCHDOG", "1");
        let mut pings = 0;
        while let Some(told) = manager.next_within(silence) {
            pings += usize::from(is_ping(&told));
            assert!(pings < 20, "a hung run is told alive");
        }
        let alive = ask(&socket, "GET /health/live HTTP/1.1\r\n\r\n");
        assert_eq!(alive.status, 200, "only the engine hangs");
    }

    #[test]
    fn the_socket_of_the_manager_is_served_and_left_to_it() {
        let manager = Manager::new();
        let path = manager.path("activated.sock");
        let listener = UnixListener::bind(&path).expect("bound");
        // Who connects before the daemon is there waits in the backlog.
        let mut early = Wire::new(UnixStream::connect(&path).expect("the manager listens"));
        early.send(post("/v1/infill", INFILL));
        let arguments = arguments(&manager);
        let handed = OwnedFd::from(listener.try_clone().expect("a copy"));
        let environment = [("LISTEN_PID", "$$"), ("LISTEN_FDS", "1")];
        let unit = manager.start(&refs(&arguments), &environment, Some(handed));
        manager.until_ready();
        let status = early.response().status;
        assert!(
            [200, 503].contains(&status),
            "answered, or told to come back: {status}"
        );
        assert_eq!(ask(&path, &post("/v1/infill", INFILL)).status, 200);
        assert!(!manager.path("glmd.sock").exists(), "it binds nothing");
        unit.signal("TERM");
        assert_eq!(unit.wait(), Some(0));
        UnixStream::connect(&path).expect("the manager still listens");
    }

    #[test]
    fn sockets_for_others_are_not_taken() {
        for environment in [
            [("LISTEN_PID", "1"), ("LISTEN_FDS", "1")],
            [("LISTEN_PID", "$$"), ("LISTEN_FDS", "0")],
        ] {
            let manager = Manager::new();
            let theirs = UnixListener::bind(manager.path("theirs.sock")).expect("bound");
            let arguments = arguments(&manager);
            let _unit = manager.start(&refs(&arguments), &environment, Some(theirs.into()));
            manager.until_ready();
            let live = "GET /health/live HTTP/1.1\r\n\r\n";
            assert_eq!(ask(&manager.path("glmd.sock"), live).status, 200);
        }
    }

    #[test]
    fn half_an_activation_is_refused() {
        let manager = Manager::new();
        let arguments = arguments(&manager);
        let listener = || OwnedFd::from(UnixListener::bind(manager.path("x")).expect("bound"));
        let datagram = || OwnedFd::from(UnixDatagram::unbound().expect("a socket"));
        let connection = || OwnedFd::from(UnixStream::pair().expect("two sockets").0);
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").expect("a file"));
        type Make<'a> = &'a dyn Fn() -> OwnedFd;
        type Case<'a> = (&'a [(&'a str, &'a str)], Option<Make<'a>>, &'a str);
        let cases: [Case<'_>; 8] = [
            (&[("LISTEN_FDS", "1")], Some(&listener), "LISTEN_PID is not"),
            (&[("LISTEN_PID", "$$")], None, "LISTEN_FDS is not"),
            (
                &[("LISTEN_PID", "$$"), ("LISTEN_FDS", "two")],
                None,
                "LISTEN_FDS=\"two\" is not a number",
            ),
            (
                &[("LISTEN_PID", "$$"), ("LISTEN_FDS", "2")],
                None,
                "2 sockets are handed over",
            ),
            (
                &[("LISTEN_PID", "$$"), ("LISTEN_FDS", "1")],
                None,
                "descriptor 3",
            ),
            (
                &[("LISTEN_PID", "$$"), ("LISTEN_FDS", "1")],
                Some(&datagram),
                "descriptor 3",
            ),
            (
                &[("LISTEN_PID", "$$"), ("LISTEN_FDS", "1")],
                Some(&connection),
                "it is a connection",
            ),
            (
                &[("LISTEN_PID", "$$"), ("LISTEN_FDS", "1")],
                Some(&file),
                "descriptor 3",
            ),
        ];
        for (environment, handed, message) in cases {
            let _ = std::fs::remove_file(manager.path("x"));
            let output = manager.run(&refs(&arguments), environment, handed.map(|make| make()));
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(told.contains(message), "{environment:?}: {told}");
            assert_eq!(output.status.code(), Some(78), "{told}");
            assert_eq!(manager.next_within(Duration::from_millis(1)), None);
        }
    }

    /// What the daemon says about memory.
    fn reason(socket: &Path) -> String {
        let status = ask(socket, "GET /v1/status HTTP/1.1\r\n\r\n").json();
        status["level_reason"].as_str().expect("text").to_owned()
    }

    #[test]
    fn pressure_through_a_fifo_is_felt() {
        let manager = Manager::new();
        let fifo = manager.path("pressure");
        let made = Command::new("mkfifo").arg(&fifo).status();
        assert!(made.expect("mkfifo").success());
        let arguments = arguments(&manager);
        let watch = fifo.to_str().expect("UTF-8");
        let _unit = manager.start(&refs(&arguments), &[("MEMORY_PRESSURE_WATCH", watch)], None);
        manager.until_ready();
        let socket = manager.path("glmd.sock");
        assert_ne!(reason(&socket), "tasks wait for memory");
        let mut pressed = std::fs::OpenOptions::new();
        let mut pressed = pressed.write(true).open(&fifo).expect("it reads");
        wait(|| {
            pressed.write_all(b"x").expect("it reads");
            reason(&socket) == "tasks wait for memory"
        });
    }

    #[test]
    fn pressure_through_a_socket_is_asked_for_as_the_manager_says() {
        let manager = Manager::new();
        let path = manager.path("pressure");
        let listener = UnixListener::bind(&path).expect("bound");
        let arguments = arguments(&manager);
        let watch = path.to_str().expect("UTF-8");
        let environment = [
            ("MEMORY_PRESSURE_WATCH", watch),
            // `some 200000 2000000` and its NUL, as systemd encodes it.
            ("MEMORY_PRESSURE_WRITE", "c29tZSAyMDAwMDAgMjAwMDAwMAA="),
        ];
        let _unit = manager.start(&refs(&arguments), &environment, None);
        let (mut watcher, _) = listener.accept().expect("it connects");
        let mut asked = [0; 20];
        watcher.read_exact(&mut asked).expect("it asks");
        assert_eq!(&asked, b"some 200000 2000000\0");
        manager.until_ready();
        let socket = manager.path("glmd.sock");
        wait(|| {
            watcher.write_all(b"x").expect("it reads");
            reason(&socket) == "tasks wait for memory"
        });
    }
}
