//! How the governor learns of pressure: what a service manager offers, FIFOs, sockets, triggers.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module"
)]

mod support;

use glm_engine::memory::watch::{Offer, Source, Watch};
use glm_engine::memory::{Governor, Settings};
use glm_engine::units::{Bytes, Level};
use glm_engine::{Config, Drain, Engine};
use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;
use support::told::Told;
use support::{Shared, TestClock, capabilities, info, source};

#[test]
fn what_the_service_manager_offers_is_understood() {
    let here = |path: &str, write: &[u8]| {
        Offer::Here(Source {
            path: path.into(),
            write: write.to_vec(),
        })
    };
    assert_eq!(Offer::of(None, Some("eA==")), Offer::None);
    assert_eq!(Offer::of(Some("/dev/null"), None), Offer::Off);
    assert_eq!(
        Offer::of(
            Some("/sys/fs/cgroup/system.slice/glmd.service/memory.pressure"),
            Some("c29tZSAyMDAwMDAgMjAwMDAwMAA=")
        ),
        here(
            "/sys/fs/cgroup/system.slice/glmd.service/memory.pressure",
            b"some 200000 2000000\0"
        )
    );
    assert_eq!(Offer::of(Some("/run/x"), None), here("/run/x", b""));
    assert_eq!(Offer::of(Some("/run/x"), Some("*")), here("/run/x", b""));
    let off = Watch::start(Offer::Off, vec!["/proc/pressure/memory".into()], || {});
    assert_eq!(off.name(), "polling");
    let missing = Watch::start(here("/nowhere", b""), Vec::new(), || {});
    assert_eq!(missing.name(), "polling");
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::OpenOptions;
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn fifo(folder: &std::path::Path) -> std::path::PathBuf {
        let path = folder.join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        path
    }

    #[test]
    fn a_fifo_fires_and_goes_on_when_its_writer_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(folder.path());
        let (send, woken) = mpsc::channel();
        let source = Source {
            path: path.clone(),
            write: Vec::new(),
        };
        let watch = Watch::start(Offer::Here(source), Vec::new(), move || {
            let _ = send.send(());
        });
        assert_eq!(watch.name(), "systemd");
        for _ in 0..3 {
            assert!(!watch.fired());
            OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .write_all(b"x")
                .unwrap();
            woken.recv().unwrap();
            assert!(watch.fired());
        }
        drop(watch);
        assert!(woken.recv().is_err(), "its thread has ended");
    }

    #[test]
    fn a_socket_gets_what_is_to_be_written_and_fires() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let (send, woken) = mpsc::channel();
        let source = Source {
            path,
            write: b"hello".to_vec(),
        };
        let watch = Watch::start(Offer::Here(source), Vec::new(), move || {
            let _ = send.send(());
        });
        let (mut peer, _) = listener.accept().unwrap();
        let mut said = [0; 5];
        peer.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"hello");
        peer.write_all(b"pressure").unwrap();
        woken.recv().unwrap();
        assert!(watch.fired());
        drop(peer);
        // The end of the other side ends the thread, not the process; the governor polls on.
        assert!(woken.recv().is_err());
    }

    #[test]
    fn a_trigger_wakes_an_idle_engine_and_halves_its_budget() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(folder.path());
        let told = Told::default();
        told.say(Bytes::mib(4000));
        let source_of_models = source(
            info(capabilities()),
            Shared::default(),
            Arc::new(TestClock::default()),
        );
        // A clock that stands still: no look is ever due by time, so only the trigger can cause one.
        let clock = Arc::new(TestClock::default());
        let (engine, handle) = Engine::new(Config::default(), Box::new(source_of_models), clock);
        let (send, woken) = mpsc::channel();
        let waker = handle.clone();
        let offer = Offer::Here(Source {
            path: path.clone(),
            write: Vec::new(),
        });
        let watch = Watch::start(offer, Vec::new(), move || {
            waker.wake();
            let _ = send.send(());
        });
        let governor = Governor::new(Settings::default(), Box::new(told.clone()), watch);
        let thread = engine.governed_by(Box::new(governor)).spawn().unwrap();
        while handle.status().step_budget != 256 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let looks = told.looks();
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .write_all(b"x")
            .unwrap();
        woken.recv().unwrap();
        while handle.status().step_budget == 256 {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(told.looks() > looks);
        assert_eq!(handle.status().level, Level::Yellow);
        assert_eq!(handle.status().report.as_ref().unwrap().watch, "systemd");
        handle.shutdown(Drain::Now, Box::new(|_| {}));
        thread.join().unwrap();
    }
}
