//! The daemon that dies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::mosquitto::{signal, terminate, until};

/// A real glmd with the smallest model that there is.
pub struct Glmd {
    child: Child,
}

impl Glmd {
    /// Starts `node` in `folder`, with its broker on `port` and `more` lines of configuration.
    pub async fn start(folder: &Path, port: u16, node: &str, more: &str) -> Self {
        let folder = &folder.join(node);
        fs::create_dir_all(folder).expect("a folder");
        let socket = folder.join("glmd.sock");
        let child = Command::new(env!("CARGO_BIN_EXE_glmd"))
            .arg("--config")
            .arg(Self::config(folder, port, node, more))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("glmd.log")).expect("a file"))
            .spawn()
            .expect("glmd");
        until("glmd", async || {
            tokio::net::UnixStream::connect(&socket).await.is_ok()
        })
        .await;
        Self { child }
    }

    fn config(folder: &Path, port: u16, node: &str, more: &str) -> PathBuf {
        let path = folder.join("glmd.toml");
        let text = format!(
            "[model]\npath = \"{}\"\n[http]\nsocket = \"{}\"\n\
             [mqtt]\nbroker = \"mqtt://127.0.0.1:{port}\"\nnode = \"{node}\"\n\
             keep_alive_s = 5\njournal = \"{}\"\ndiscovery_prefix = \"\"\n{more}\n",
            model().display(),
            folder.join("glmd.sock").display(),
            folder.join("journal").display()
        );
        fs::write(&path, text).expect("a file");
        path
    }

    /// Stops its clock: what comes meanwhile waits.
    pub fn pause(&self) {
        signal(&self.child, "STOP");
    }

    /// Lets it go on.
    pub fn resume(&self) {
        signal(&self.child, "CONT");
    }

    /// `kill -9`.
    pub async fn kill(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("an end");
    }

    /// Ends it in the usual way.
    pub async fn stop(mut self) {
        terminate(&self.child);
        let status = self.child.wait().expect("an end");
        assert!(status.success(), "glmd ended with {status}");
    }
}

impl Drop for Glmd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The post-norm GLM of the fixtures, exported once for this program.
fn model() -> PathBuf {
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("mqtt-model");
    if out.join("glm.json").exists() {
        return out;
    }
    let source =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/checkpoints/glm-post");
    let watch = |_| std::ops::ControlFlow::Continue(());
    let options = glm_onnx::export::Options::default();
    match glm_onnx::export::export(&source, &out, &options, &watch) {
        Ok(_) => out,
        // Another run of this program was faster.
        Err(_) if out.join("glm.json").exists() => out,
        Err(error) => panic!("the fixture cannot be exported: {error}"),
    }
}
