//! A token that another program provides, in a file that it may replace at any time.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::{Token, TokenError};
use crate::files;

/// A token that another program provides.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    last: Option<Token>,
    /// The file when it was read last.
    read: FileState,
    /// The file whose token was of no use, until that is known to have been replaced.
    refused: Option<FileState>,
}

/// Tells a file from its replacement: inode, time of the last change, and size; `None` while it is
/// not there. The time is that of the inode, so that rights which are put right count as well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct FileState(Option<(u64, i64, i64, u64)>);

impl TokenFile {
    /// A file that is read when a token is needed.
    pub fn new(path: &Path) -> Self {
        let (last, read, refused) = (None, FileState::default(), None);
        Self { path: path.to_owned(), last, read, refused }
    }

    /// Reads the file. While it is not there, the last good token is used as long as it is valid.
    pub(in crate::link) async fn read(&mut self, now: Timestamp) -> Result<Token, TokenError> {
        // Asked before the text: a file that is replaced in between counts as replaced.
        self.read = FileState::of(&self.path).await;
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || {
            String::from_utf8(files::read_file(&path)?)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
        });
        match read.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(text) => self.token(&text, now),
            Err(error) => self.last(now).ok_or_else(|| TokenError::unreadable(&error)),
        }
    }

    /// What was read last was of no use: it holds no token, or the backend does not accept it.
    pub(in crate::link) fn refused(&mut self) {
        self.refused = Some(self.read);
    }

    /// The backend has accepted the token.
    pub(in crate::link) fn accepted(&mut self) {
        self.refused = None;
    }

    /// Whether a file that was of no use has been replaced. Says so once for each.
    pub(in crate::link) async fn is_replaced(&mut self) -> bool {
        let Some(refused) = self.refused else { return false };
        let is_replaced = FileState::of(&self.path).await != refused;
        if is_replaced {
            self.refused = None;
        }
        is_replaced
    }

    /// Takes the file's text. While a writer replaces the file its text may be unusable: then the
    /// last good token is used as long as it is valid.
    pub(super) fn token(&mut self, text: &str, now: Timestamp) -> Result<Token, TokenError> {
        match Token::parse(text, now) {
            Ok(token) => {
                self.last = Some(token.clone());
                Ok(token)
            }
            Err(error) => self.last(now).ok_or_else(|| TokenError {
                what: format!("token_file {}: {}", self.path.display(), error.what),
                hint: error.hint,
            }),
        }
    }

    fn last(&self, now: Timestamp) -> Option<Token> {
        self.last.clone().filter(|last| last.is_valid(now))
    }
}

impl FileState {
    async fn of(path: &Path) -> Self {
        let facts = fs_err::tokio::metadata(path).await.ok();
        Self(facts.map(|file| (file.ino(), file.ctime(), file.ctime_nsec(), file.size())))
    }
}
