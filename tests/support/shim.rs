//! Faults of a disk under a running process, switched on and off by the test: calls of the C
//! library fail, or hang, on chosen files; and a wall clock that is wrong. `tests/shim/faults.c`
//! makes them.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use fs_err::File;

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Fsync,
    Fdatasync,
    Pwrite,
    Write,
    Ftruncate,
    Rename,
    Link,
    Open,
    Fallocate,
    SyncFileRange,
    Unlink,
    Mkdir,
}

/// How it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// EIO.
    Error,
    /// ENOSPC.
    Full,
    /// EROFS.
    ReadOnly,
    /// Half of a write is done, and told; the next one finds no space.
    Half,
    /// It does not return before the fault ends, and then does what it should.
    Hang,
}

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub calls: Vec<Call>,
    pub how: How,
    /// A pattern for paths below the root, where a star stands for slashes, too.
    pub files: &'static str,
}

/// The faults of a process.
pub struct Faults {
    root: PathBuf,
    file: PathBuf,
    control: File,
}

impl Call {
    pub const ALL: [Self; 12] = [
        Self::Fsync,
        Self::Fdatasync,
        Self::Pwrite,
        Self::Write,
        Self::Ftruncate,
        Self::Rename,
        Self::Link,
        Self::Open,
        Self::Fallocate,
        Self::SyncFileRange,
        Self::Unlink,
        Self::Mkdir,
    ];
}

/// Where the fields of `struct control` are.
mod offset {
    pub const ARMED: u64 = 0;
    pub const CALLS: u64 = 4;
    pub const ERROR: u64 = 8;
    pub const HALVES: u64 = 12;
    pub const STRUCK: u64 = 16;
    pub const PATTERN: u64 = 24;
    pub const CLOCK_AHEAD: u64 = PATTERN + super::PATTERN_BYTES as u64;
    pub const END: u64 = CLOCK_AHEAD + 8;
}

const PATTERN_BYTES: usize = 256;

impl Faults {
    /// No fault yet, for processes that have files below `root`; what is needed goes into `folder`.
    pub fn new(root: &Path, folder: &Path) -> Self {
        let file = folder.join("faults");
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        let control = options.open(&file).expect("make a file");
        control.set_len(offset::END).expect("make a file");
        Self { root: root.to_owned(), file, control }
    }

    /// Puts the process under these faults.
    pub fn strike_in(&self, command: &mut Command) {
        command.env("LD_PRELOAD", library());
        command.env("PGANALYTICS_FAULTS", &self.file);
        command.env("PGANALYTICS_FAULTS_ROOT", &self.root);
    }

    /// Begins a fault, in place of the one before.
    pub fn begin(&self, fault: &Fault) {
        self.end();
        let calls = fault.calls.iter().fold(0, |bits, call| bits | 1u32 << *call as u32);
        let error = match fault.how {
            How::Error => libc::EIO,
            How::Full | How::Half => libc::ENOSPC,
            How::ReadOnly => libc::EROFS,
            How::Hang => 0,
        };
        let mut pattern = [0; PATTERN_BYTES];
        pattern[..fault.files.len()].copy_from_slice(fault.files.as_bytes());
        self.put(offset::PATTERN, &pattern);
        self.put(offset::CALLS, &calls.to_ne_bytes());
        self.put(offset::ERROR, &error.to_ne_bytes());
        self.put(offset::HALVES, &u32::from(fault.how == How::Half).to_ne_bytes());
        self.put(offset::STRUCK, &0u64.to_ne_bytes());
        self.put(offset::ARMED, &1u32.to_ne_bytes());
    }

    /// Ends the fault.
    pub fn end(&self) {
        self.put(offset::ARMED, &0u32.to_ne_bytes());
    }

    /// Sets the wall clock: so many seconds ahead of the right time.
    pub fn set_clock_ahead(&self, seconds: i64) {
        self.put(offset::CLOCK_AHEAD, &seconds.to_ne_bytes());
    }

    /// How many calls the last fault has struck.
    pub fn struck(&self) -> u64 {
        let mut bytes = [0; 8];
        self.control.file().read_exact_at(&mut bytes, offset::STRUCK).expect("read");
        u64::from_ne_bytes(bytes)
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.control.file().write_all_at(bytes, at).expect("write");
    }
}

/// The library, compiled once for each run of the tests.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (draft, path) = (tempfile::NamedTempFile::new_in(folder), folder.join("faults.so"));
        let draft = draft.expect("make a file").into_temp_path();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim/faults.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-x", "c"]);
        compiler.arg(source).arg("-o").arg(&draft);
        let done = compiler.output().expect("start the C compiler");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        draft.persist(&path).expect("keep the library");
        path
    })
}
