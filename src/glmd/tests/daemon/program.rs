//! The program as an operator meets it: exit statuses and messages.

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Command, Output};

    fn glmd(folder: &Path, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_glmd"))
            .args(arguments)
            .env_clear()
            .env("GLMD_QUEUE__TOKENS", "4096")
            .current_dir(folder)
            .output()
            .expect("it starts")
    }

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).expect("text")
    }

    #[test]
    fn the_effective_configuration_names_the_origin_of_every_key() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("glmd.toml"), "[http]\nconnections = 7\n")
            .expect("written");
        let output = glmd(
            folder.path(),
            &[
                "check",
                "--effective",
                "--config",
                "glmd.toml",
                "--set",
                "log.level=debug",
            ],
        );
        assert!(output.status.success(), "{}", text(&output.stderr));
        let line = |key: &str| {
            let found = text(&output.stdout)
                .lines()
                .find(|line| line.starts_with(key));
            found.unwrap_or_else(|| panic!("no {key}")).to_owned()
        };
        assert!(line("http.connections = 7").ends_with("# glmd.toml"));
        assert!(line("queue.tokens = 4096").ends_with("# environment variable GLMD_QUEUE__TOKENS"));
        assert!(line("log.level = \"debug\"").ends_with("# flag --set"));
        assert!(line("queue.requests = 256").ends_with("# default"));
    }

    #[test]
    fn a_bad_configuration_is_told_before_anything_is_bound() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("bad.toml");
        std::fs::write(&path, "[http]\nsokcet = '/run/x'\n").expect("written");
        for arguments in [
            &["check", "--config", "bad.toml"][..],
            &["--config", "bad.toml"],
            &["check", "--config", "missing.toml"],
            &["check", "--set", "http.mode=rw"],
            &["check", "--set", "nonsense"],
            &["check", "--set", "=1"],
        ] {
            let output = glmd(folder.path(), arguments);
            assert_eq!(output.status.code(), Some(78), "{arguments:?}");
            assert!(
                text(&output.stderr).starts_with("glmd: configuration: "),
                "{arguments:?}"
            );
        }
        let told = glmd(folder.path(), &["check", "--config", "bad.toml"]);
        let told = text(&told.stderr);
        assert!(
            told.contains("bad.toml") && told.contains("sokcet"),
            "{told}"
        );
        assert_eq!(glmd(folder.path(), &["--nonsense"]).status.code(), Some(64));
    }

    #[test]
    fn a_missing_model_is_told_with_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("glmd.sock");
        let socket = socket.to_str().expect("text");
        let output = glmd(
            folder.path(),
            &["--model", "/nonexistent", "--socket", socket],
        );
        assert_eq!(output.status.code(), Some(78));
        let told = text(&output.stderr);
        assert!(
            told.contains("model.path") && told.contains("glmctl export"),
            "{told}"
        );
        assert!(!Path::new(socket).exists());
    }
}
