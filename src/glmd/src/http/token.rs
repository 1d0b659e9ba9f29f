//! The secret that TCP clients show.

use std::io::Read;
use std::path::{Path, PathBuf};

use glm_wire::error::{ErrorDetail, ErrorKind};
use hyper::header::HeaderValue;

use super::Refusal;

/// Shortest token: 16 characters of base64 are 96 bits.
const SHORTEST: usize = 16;
/// Longest token; a header has room for it.
const LONGEST: usize = 512;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct TokenError {
    path: PathBuf,
    reason: String,
}

/// A secret that is compared and never shown.
pub struct Token(Vec<u8>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// The first line of a file.
    ///
    /// # Errors
    /// When it cannot be read, or is too short to be a secret.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let bad = |reason: String| TokenError {
            path: path.to_owned(),
            reason,
        };
        let file = std::fs::File::open(path).map_err(|e| bad(e.to_string()))?;
        let mut text = String::new();
        file.take(2 * LONGEST as u64)
            .read_to_string(&mut text)
            .map_err(|e| bad(e.to_string()))?;
        let token = text.lines().next().unwrap_or_default().trim();
        let printable = token.bytes().all(|b| b.is_ascii_graphic());
        if !printable || !(SHORTEST..=LONGEST).contains(&token.len()) {
            return Err(bad(format!(
                "a token has {SHORTEST} to {LONGEST} printable characters on the first line"
            )));
        }
        Ok(Self(token.as_bytes().to_vec()))
    }

    /// Whether a request shows it.
    pub(super) fn check(&self, header: Option<&HeaderValue>) -> Result<(), Refusal> {
        let shown = header
            .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "))
            .unwrap_or_default();
        match self.equals(shown) {
            true => Ok(()),
            false => Err(Refusal::with_status(
                401,
                ErrorDetail::new(
                    ErrorKind::PermissionDenied,
                    "bad_token",
                    "send `Authorization: Bearer` with the token of http.tcp.token_file",
                ),
            )),
        }
    }

    /// Takes the same time wherever the first difference is.
    fn equals(&self, shown: &[u8]) -> bool {
        let mut difference = u8::from(shown.len() != self.0.len());
        for (index, expected) in self.0.iter().enumerate() {
            difference |= expected ^ shown.get(index).copied().unwrap_or_default();
        }
        std::hint::black_box(difference) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_opens() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "0123456789abcdef\nnot this\n").expect("written");
        let token = Token::read(file.path()).expect("good");
        let header = |text: &str| HeaderValue::from_str(text).expect("a header");
        assert!(
            token
                .check(Some(&header("Bearer 0123456789abcdef")))
                .is_ok()
        );
        for bad in [
            "Bearer 0123456789abcdeg",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Bearer ",
            "0123456789abcdef",
        ] {
            assert!(token.check(Some(&header(bad))).is_err(), "{bad}");
        }
        assert!(token.check(None).is_err());
        assert_eq!(format!("{token:?}"), "Token(..)");
        std::fs::write(file.path(), "short").expect("written");
        assert!(Token::read(file.path()).is_err());
    }
}
