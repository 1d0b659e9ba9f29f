//! `glmctl` against a scripted daemon: what goes over the socket, what is
//! printed, and the exit status.
#![allow(clippy::tests_outside_test_module, reason = "the whole file is tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

/// Nothing in these tests takes this long; it only ends a test that hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// A request as the daemon sees it.
struct Asked {
    head: String,
    body: Value,
}

fn read_request(stream: &mut BufReader<UnixStream>) -> Asked {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(stream.read_line(&mut head).expect("a head") > 0, "{head}");
    }
    let length = head
        .to_lowercase()
        .lines()
        .find_map(|l| l.strip_prefix("content-length: ")?.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a body");
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Asked { head, body }
}

fn reply(status: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Serves every connection on a thread of its own until the test ends.
fn daemon(serve: impl Fn(BufReader<UnixStream>) + Send + Sync + 'static) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = UnixListener::bind(folder.path().join("s")).expect("a socket");
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            stream.set_read_timeout(Some(LIMIT)).expect("a limit");
            thread::spawn(move || serve(BufReader::new(stream)));
        }
    });
    folder
}

/// Answers every request alike.
fn answering(status: &'static str, body: Value) -> TempDir {
    daemon(move |mut stream| {
        read_request(&mut stream);
        // The client may be gone already, which is for its own test to notice.
        let _ = stream.get_mut().write_all(&reply(status, &body));
    })
}

fn start(folder: &TempDir, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_glmctl"))
        .arg("--socket")
        .arg(folder.path().join("s"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("glmctl starts")
}

fn run(folder: &TempDir, arguments: &[&str], input: &str) -> Output {
    let mut child = start(folder, arguments);
    let mut stdin = child.stdin.take().expect("standard input");
    let input = input.to_owned();
    // A command that reads no input may have ended already.
    let writer = thread::spawn(move || stdin.write_all(input.as_bytes()).is_ok());
    let output = child.wait_with_output().expect("an end");
    writer.join().expect("the writer");
    output
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn infilled(text: &str) -> Value {
    json!({
        "id": "infill-1", "text": text,
        "blanks": [{"index": 0, "text": " lamp", "tokens": 1, "logprob": -0.1, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
        "timing": {"queue_ms": 0.0, "prefill_ms": 1.0, "decode_ms": 1.0, "total_ms": 2.0}
    })
}

#[test]
fn infill_sends_what_was_typed_and_prints_the_text() {
    let (sender, asked) = mpsc::channel();
    let folder = daemon(move |mut stream| {
        sender.send(read_request(&mut stream)).expect("the test");
        let answer = reply("200 OK", &infilled("The lamp is off."));
        stream.get_mut().write_all(&answer).expect("a client");
    });
    let arguments = [
        "infill",
        "The [MASK] is off.",
        "--seed",
        "7",
        "--stop",
        ".",
        "--priority",
        "high",
    ];
    let output = run(&folder, &arguments, "");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output), "The lamp is off.\n");
    let asked = asked.recv_timeout(LIMIT).expect("a request");
    assert!(asked.head.starts_with("POST /v1/infill HTTP/1.1\r\n"));
    let expected =
        json!({"text": "The [MASK] is off.", "seed": 7, "stop": ["."], "priority": "high"});
    assert_eq!(asked.body, expected);
}

#[test]
fn a_task_prints_only_what_was_filled_in() {
    let folder = answering("200 OK", infilled("turn it off lamp"));
    let output = run(
        &folder,
        &["infill", "--task", "intent", "-"],
        "turn it off\n",
    );
    assert_eq!(stdout(&output), "lamp\n");
}

#[test]
fn refusals_reach_people_and_programs() {
    let error = json!({"error": {
        "code": "bad_input", "type": "invalid_request_error",
        "message": "must be positive", "param": "temperature"
    }});
    let folder = answering("400 Bad Request", error.clone());
    let output = run(&folder, &["infill", "a [MASK]"], "");
    assert_eq!(output.status.code(), Some(65));
    assert_eq!(stderr(&output), "glmctl: temperature: must be positive\n");
    let output = run(&folder, &["--output", "json", "infill", "a [MASK]"], "");
    assert_eq!(output.status.code(), Some(65));
    let told: Value = serde_json::from_str(&stderr(&output)).expect("JSON");
    assert_eq!(told, error);
}

#[test]
fn overload_has_its_own_exit_status() {
    let error = json!({"error": {
        "code": "overloaded", "type": "overloaded", "message": "the queue is full", "retry_after_ms": 10
    }});
    let folder = answering("429 Too Many Requests", error);
    let output = run(&folder, &["generate", "a"], "");
    assert_eq!(output.status.code(), Some(75), "{}", stderr(&output));
}

#[test]
fn no_daemon_no_answer() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = run(&folder, &["status"], "");
    assert_eq!(output.status.code(), Some(69));
    assert!(stderr(&output).contains("--socket"), "{}", stderr(&output));
}

#[test]
fn something_else_on_the_socket_is_told_apart() {
    for answer in [
        "SSH-2.0-x\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]",
    ] {
        let folder = daemon(move |mut stream| {
            stream
                .get_mut()
                .write_all(answer.as_bytes())
                .expect("a client");
            // Gives the client time to read before the connection closes.
            let _ = stream.read(&mut [0; 1024]);
        });
        let output = run(&folder, &["status"], "");
        assert_eq!(output.status.code(), Some(76), "{}", stderr(&output));
    }
}

#[test]
fn lines_keep_their_order_while_eight_are_in_flight() {
    let waiting = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (seen, peak) = (Arc::clone(&waiting), Arc::clone(&most));
    let folder = daemon(move |mut stream| {
        let now = seen.fetch_add(1, Ordering::SeqCst) + 1;
        peak.fetch_max(now, Ordering::SeqCst);
        let text = read_request(&mut stream).body["text"]
            .as_str()
            .expect("a text")
            .to_owned();
        // Later lines answer sooner, and nobody answers before eight wait.
        let number: u64 = text.parse().expect("a number");
        if number < 8 {
            while peak.load(Ordering::SeqCst) < 8 {
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(5 * (8 - number)));
        }
        seen.fetch_sub(1, Ordering::SeqCst);
        let answer = if number == 11 {
            let error = json!({"error": {"code": "bad_input", "type": "invalid_request_error", "message": "no blank"}});
            reply("400 Bad Request", &error)
        } else {
            reply("200 OK", &infilled(&format!("{number}\nfilled")))
        };
        stream.get_mut().write_all(&answer).expect("a client");
    });
    let input: String = (0..20).map(|n| format!("{n}\n")).collect();
    let output = run(&folder, &["infill", "--lines"], &input);
    assert_eq!(most.load(Ordering::SeqCst), 8);
    let expected: String = (0..20)
        .map(|n| {
            if n == 11 {
                "\n".to_owned()
            } else {
                format!("{n}\\nfilled\n")
            }
        })
        .collect();
    assert_eq!(stdout(&output), expected);
    assert_eq!(output.status.code(), Some(65));
    assert!(
        stderr(&output).contains("line 12: no blank"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn an_overloaded_daemon_is_asked_again_for_each_line() {
    let tries = AtomicUsize::new(0);
    let folder = daemon(move |mut stream| {
        read_request(&mut stream);
        let answer = if tries.fetch_add(1, Ordering::SeqCst) < 2 {
            let error = json!({"error": {
                "code": "overloaded", "type": "overloaded", "message": "full", "retry_after_ms": 1
            }});
            reply("429 Too Many Requests", &error)
        } else {
            reply("200 OK", &infilled("done"))
        };
        stream.get_mut().write_all(&answer).expect("a client");
    });
    let output = run(&folder, &["infill", "--lines"], "a [MASK]\n");
    assert_eq!(stdout(&output), "done\n", "{}", stderr(&output));
}

#[test]
fn a_model_that_is_being_loaded_is_waited_for() {
    let looks = AtomicUsize::new(0);
    let folder = daemon(move |mut stream| {
        let asked = read_request(&mut stream);
        let loading = looks.load(Ordering::SeqCst) < 2;
        let phase = if loading { "loading" } else { "unloaded" };
        let error = json!({"error": {
            "code": "model_not_loaded", "type": "unavailable", "message": "no model", "retry_after_ms": 1
        }});
        let answer = match asked.head.starts_with("GET /v1/status ") {
            true => {
                looks.fetch_add(1, Ordering::SeqCst);
                let status = glm_wire::status::Status {
                    phase: phase.into(),
                    ..Default::default()
                };
                reply("200 OK", &serde_json::to_value(status).expect("plain data"))
            }
            false if loading || asked.body["text"] == "never [MASK]" => {
                reply("503 Service Unavailable", &error)
            }
            false => reply("200 OK", &infilled("done")),
        };
        stream.get_mut().write_all(&answer).expect("a client");
    });
    let output = run(&folder, &["infill", "a [MASK]"], "");
    assert_eq!(stdout(&output), "done\n", "{}", stderr(&output));
    // One that nobody loads is not.
    let output = run(&folder, &["infill", "never [MASK]"], "");
    assert_eq!(output.status.code(), Some(75), "{}", stderr(&output));
}

const STREAM: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";

fn chunk(text: &str) -> Vec<u8> {
    let choice = json!({"index": 0, "text": text, "logprobs": null, "finish_reason": null});
    let chunk = json!({
        "id": "cmpl-1", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]
    });
    format!("data: {chunk}\n\n").into_bytes()
}

#[test]
fn text_is_printed_as_it_comes() {
    let (go, wait) = mpsc::channel();
    let wait = std::sync::Mutex::new(wait);
    let folder = daemon(move |mut stream| {
        let asked = read_request(&mut stream);
        assert_eq!(asked.body["stream"], true);
        let out = stream.get_mut();
        out.write_all(STREAM).expect("a client");
        out.write_all(&chunk("one")).expect("a client");
        wait.lock()
            .expect("no panic")
            .recv_timeout(LIMIT)
            .expect("the test");
        out.write_all(&chunk(" two")).expect("a client");
        out.write_all(b"data: [DONE]\n\n").expect("a client");
    });
    let mut child = start(&folder, &["generate", "zero"]);
    let mut out = child.stdout.take().expect("standard output");
    let mut first = [0; 3];
    out.read_exact(&mut first).expect("the first word");
    assert_eq!(&first, b"one");
    go.send(()).expect("the daemon");
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("the rest");
    assert_eq!(rest, " two\n");
    assert!(child.wait().expect("an end").success());
}

#[test]
fn a_stream_that_breaks_off_is_no_success() {
    let folder = daemon(|mut stream| {
        read_request(&mut stream);
        let out = stream.get_mut();
        out.write_all(STREAM).expect("a client");
        out.write_all(&chunk("half")).expect("a client");
    });
    let output = run(&folder, &["generate", "a"], "");
    assert_eq!(output.status.code(), Some(76), "{}", stderr(&output));
    assert_eq!(stdout(&output), "half");
}

#[test]
fn ctrl_c_closes_the_connection() {
    let (sender, told) = mpsc::channel();
    let folder = daemon(move |mut stream| {
        read_request(&mut stream);
        sender.send("asked").expect("the test");
        let closed = stream.read(&mut [0; 16]).expect("an end") == 0;
        sender
            .send(if closed { "closed" } else { "bytes" })
            .expect("the test");
    });
    let child = start(&folder, &["infill", "a [MASK]"]);
    assert_eq!(told.recv_timeout(LIMIT), Ok("asked"));
    let pid = child.id().to_string();
    let killed = Command::new("sh")
        .args(["-c", &format!("kill -INT {pid}")])
        .status();
    assert!(killed.expect("a shell").success());
    assert_eq!(told.recv_timeout(LIMIT), Ok("closed"));
    let output = child.wait_with_output().expect("an end");
    assert_eq!(output.status.code(), Some(130));
}

#[test]
fn arguments_are_checked_before_anything_is_sent() {
    let folder = tempfile::tempdir().expect("a folder");
    for (arguments, status) in [
        (&["classify", "x"][..], 64),
        (
            &[
                "classify",
                "x",
                "--pattern",
                "{text} [MASK]",
                "--labels",
                "a",
            ],
            64,
        ),
        (&["classify", "x", "--task", "t", "--pattern", "p"], 64),
        (&["infill"], 64),
        (&["infill", "x", "--json-schema", "/nonexistent/schema"], 74),
        (&["cancel", "../admin/unload"], 64),
        (&["top"], 64),
    ] {
        let output = run(&folder, arguments, "");
        assert_eq!(
            output.status.code(),
            Some(status),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
}

/// What `doctor --output json` finds about a topic.
fn found<'a>(report: &'a Value, topic: &str) -> Vec<&'a Value> {
    let findings = report["findings"].as_array().expect("findings");
    findings.iter().filter(|f| f["topic"] == topic).collect()
}

#[test]
fn doctor_looks_at_the_machine_when_no_daemon_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = run(&folder, &["--output", "json", "doctor"], "");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!(report["status"], Value::Null);
    let daemon = found(&report, "daemon");
    assert_eq!(daemon[0]["state"], "warning");
    let fix = daemon[0]["fix"].as_str().expect("a fix");
    assert!(fix.contains("systemctl start glmd"), "{fix}");
    for topic in [
        "backend",
        "onnxruntime",
        "kernels",
        "threads",
        "memory",
        "cgroup",
        "pressure",
    ] {
        assert!(!found(&report, topic).is_empty(), "nothing about {topic}");
    }
}

#[test]
fn doctor_asks_a_running_daemon_first() {
    let status = json!({
        "version": "0.1.0", "uptime_s": 60.0, "phase": "ready", "level": "orange",
        "level_reason": "tasks wait for memory",
        "model": {
            "id": "glm-mini", "family": "glm", "backend": "tract-paged",
            "backend_reason": "ort-paged: no libonnxruntime was found",
            "quantisation": "int8/32", "sha256": "00", "max_tokens": 512,
            "operations": [], "tasks": []
        },
        "requests": {"queued": 0, "queued_tokens": 0, "running": 0, "answered": 0,
                     "refused": 0, "failed": 0, "cancelled": 0},
        "batch": {"sequences": 0, "tokens": 0, "token_budget": 64, "token_budget_max": 128},
        "memory": {"headroom": 1, "reserved": 0, "kv_used": 0, "kv_resident": 0,
                   "weights": 0, "anonymous": 0},
        "tokens_per_second": 0.0
    });
    let folder = answering("200 OK", status);
    let output = run(&folder, &["--output", "json", "doctor"], "");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!(report["status"]["model"]["backend"], "tract-paged");
    let backend = found(&report, "backend")[0]["what"].to_string();
    assert!(backend.contains("no libonnxruntime was found"), "{backend}");
    let memory = found(&report, "memory")[0]["what"].to_string();
    assert!(
        memory.contains("orange") && memory.contains("tasks wait"),
        "{memory}"
    );
    assert!(found(&report, "memory")[0]["fix"].is_string());
}

#[test]
fn doctor_calls_a_stranger_on_the_socket_a_problem() {
    let folder = answering("200 OK", json!({"hello": "there"}));
    let output = run(&folder, &["doctor"], "");
    assert_eq!(output.status.code(), Some(69), "{}", stdout(&output));
    assert!(
        stdout(&output).contains("problem  daemon"),
        "{}",
        stdout(&output)
    );
}
