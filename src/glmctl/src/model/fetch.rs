//! Downloads that go on where they broke off.
//!
//! What has come lies beside the models under its SHA-256, so that the next
//! try finds it. The hash is what is believed, not the server.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use glm::manifest::Sha256;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body, http};

use crate::failure::{Failure, Result};
use crate::progress::Bar;

use super::install::{hash, make_room};

/// Time for a server to take the connection, and then to begin its answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// A server that sends nothing for so long is given up; what has come is kept.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// How often Ctrl-C is looked for.
const GLANCE: Duration = Duration::from_millis(200);
/// Bytes that are handed on at a time, and pieces that wait for the disk.
const PIECE: usize = 256 << 10;
const WAITING: usize = 8;
/// Servers that send on to others.
const MOST_REDIRECTS: u32 = 5;

/// Downloads `url` into `folder`; returns the file, whose hash is `wanted`.
pub fn fetch(url: &str, wanted: Sha256, folder: &Path, bar: &Bar) -> Result<PathBuf> {
    let path = folder.join(format!(".{wanted}.part"));
    let name = path.display().to_string();
    let fault = |e| Failure::io(&name, e);
    let mut file = (OpenOptions::new().create(true).append(true).read(true))
        .open(&path)
        .map_err(fault)?;
    if file.try_lock().is_err() {
        return Err(Failure::BadInput(format!(
            "another glmctl downloads {url} already"
        )));
    }
    let have = file.metadata().map_err(fault)?.len();
    // A download may be complete, and only its installation have failed.
    let complete = have > 0 && hash(&path, bar)? == wanted;
    if !complete {
        download(url, have, &mut file, folder, bar).map_err(|failure| with_name(failure, &name))?;
        file.sync_all().map_err(fault)?;
        let found = hash(&path, bar)?;
        if found != wanted {
            fs::remove_file(&path).map_err(fault)?;
            return Err(Failure::BadInput(format!(
                "{url} has the SHA-256 {found}, not {wanted}; what was downloaded is deleted"
            )));
        }
    }
    Ok(path)
}

/// The name of the file where the failure has none yet.
fn with_name(failure: Failure, name: &str) -> Failure {
    match failure {
        Failure::Io { what, source } if what.is_empty() => Failure::io(name, source),
        other => other,
    }
}

/// Appends what comes after the first `have` bytes.
fn download(url: &str, have: u64, file: &mut File, folder: &Path, bar: &Bar) -> Result<()> {
    let failed = |reason: String| Failure::BadInput(format!("{url}: {reason}"));
    let fault = |e| Failure::io(String::new(), e);
    let mut request = agent(url)?.get(url);
    if have > 0 {
        request = request.header("range", format!("bytes={have}-"));
    }
    let response = request.call().map_err(|e| failed(e.to_string()))?;
    let status = response.status();
    let from = match status.as_u16() {
        200 => 0,
        206 if range_start(&response) == Some(have) => have,
        // It has no more than we have, which is not what is wanted.
        416 if have > 0 => {
            file.set_len(0).map_err(fault)?;
            return Err(failed(
                "has fewer bytes than were downloaded before; try again".to_owned(),
            ));
        }
        _ => return Err(failed(format!("the server answers {status}"))),
    };
    if from != have {
        file.set_len(from).map_err(fault)?;
    }
    let length = response.body().content_length();
    if let Some(length) = length {
        // The archive, and what comes out of it.
        make_room(folder, length.saturating_mul(2).saturating_add(from))?;
    }
    let total = length.map_or(0, |length| from + length);
    let pieces = pieces(response);
    let (mut done, mut heard) = (from, Instant::now());
    loop {
        if bar.at("download", done, total.max(done)).is_break() {
            return Err(Failure::Interrupted);
        }
        match pieces.recv_timeout(GLANCE) {
            Ok(Ok(piece)) => {
                file.write_all(&piece).map_err(fault)?;
                done += piece.len() as u64;
                heard = Instant::now();
            }
            Ok(Err(reason)) => {
                return Err(failed(format!(
                    "broke off ({reason}); the same command goes on"
                )));
            }
            Err(RecvTimeoutError::Timeout) if heard.elapsed() < STALL_LIMIT => {}
            Err(RecvTimeoutError::Timeout) => {
                let seconds = STALL_LIMIT.as_secs();
                return Err(failed(format!(
                    "nothing came for {seconds} s; the same command goes on"
                )));
            }
            Err(RecvTimeoutError::Disconnected) if total > done => {
                return Err(failed(
                    "ended too early; the same command goes on".to_owned(),
                ));
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

/// The body piece by piece, read on a thread of its own: a read cannot be told to give up.
fn pieces(response: http::Response<Body>) -> Receiver<Result<Vec<u8>, std::io::Error>> {
    let (sender, receiver) = sync_channel(WAITING);
    let mut body = response.into_body().into_reader();
    std::thread::spawn(move || {
        loop {
            let mut piece = vec![0; PIECE];
            let read = body.read(&mut piece);
            let piece = match read {
                Ok(0) => return,
                Ok(count) => {
                    piece.truncate(count);
                    Ok(piece)
                }
                Err(error) => Err(error),
            };
            let last = piece.is_err();
            // Whoever gave up has dropped the other end.
            if sender.send(piece).is_err() || last {
                return;
            }
        }
    });
    receiver
}

/// Where a partial answer begins: `bytes START-END/SIZE`.
fn range_start(response: &http::Response<Body>) -> Option<u64> {
    let range = response.headers().get("content-range")?.to_str().ok()?;
    range
        .strip_prefix("bytes ")?
        .split('-')
        .next()?
        .parse()
        .ok()
}

fn agent(url: &str) -> Result<Agent> {
    let mut config = Agent::config_builder()
        .timeout_connect(Some(ANSWER_LIMIT))
        .timeout_recv_response(Some(ANSWER_LIMIT))
        .max_redirects(MOST_REDIRECTS)
        .http_status_as_error(false)
        .user_agent(concat!("glmctl/", env!("CARGO_PKG_VERSION")));
    if url.starts_with("https:") {
        config = config.https_only(true).tls_config(tls()?);
    }
    Ok(config.build().into())
}

/// The certificates of the system, as every other program here trusts them.
fn tls() -> Result<TlsConfig> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err(Failure::BadInput(
            "this system has no certificates to know servers by: apt install ca-certificates"
                .to_owned(),
        ));
    }
    let certificates: Vec<Certificate<'static>> = (found.certs.iter())
        .map(|der| Certificate::from_der(der).to_owned())
        .collect();
    Ok(TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::from(certificates.into_iter()))
        .build())
}
