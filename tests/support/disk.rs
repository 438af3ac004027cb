//! A file system of a test's own on a loop device, whose power can be cut. Takes root.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Cuts the power: `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`. From then on nothing
/// reaches the device: neither dirty pages nor the journal's running transaction. Right before, a
/// line goes into a file, with the milliseconds since the system's start.
const CUT: &str = "import fcntl, os, struct, sys
root = os.open(sys.argv[1], os.O_RDONLY)
mark = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
now = int(float(open('/proc/uptime').read().split()[0]) * 1000)
os.write(mark, b'%s %d\\n' % (sys.argv[3].encode(), now))
fcntl.ioctl(root, 0x8004587d, struct.pack('I', 2))";

/// An ext4 file system in a file, mounted as long as the value lives.
pub struct Disk {
    place: tempfile::TempDir,
    device: String,
    mounted: bool,
}

impl Disk {
    /// A new file system of `mebibytes`; `None`, with the reason on standard error, where there
    /// are no loop devices for this user. CI must have them.
    pub fn new(mebibytes: u64) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "CI runs as root");
            return None;
        }
        let place = super::directory();
        let image = place.path().join("image");
        let file = fs_err::File::create(&image).expect("make an image");
        file.set_len(mebibytes << 20).expect("make an image");
        let device = run("losetup", &["--find", "--show", text(&image)]);
        let mut disk = Self { place, device: device.trim().to_owned(), mounted: false };
        run("mkfs.ext4", &["-q", "-F", &disk.device]);
        fs_err::create_dir(disk.root()).expect("make a mount point");
        disk.mount();
        Some(disk)
    }

    /// Where it is mounted.
    pub fn root(&self) -> PathBuf {
        self.place.path().join("mounted")
    }

    /// Mounts it: replays the journal, as after a power loss.
    pub fn mount(&mut self) {
        let options = ["-t", "ext4", "-o", "errors=remount-ro", &self.device];
        run("mount", &[&options[..], &[text(&self.root())]].concat());
        self.mounted = true;
    }

    /// Unmounts it; nobody may have a file open there.
    pub fn unmount(&mut self) {
        run("umount", &[text(&self.root())]);
        self.mounted = false;
    }

    /// Cuts the power: what the device has not been given by now is lost. Adds a line
    /// that begins with `word` to `report` right before.
    pub fn cut_power(&self, report: &Path, word: &str) {
        run("python3", &["-c", CUT, text(&self.root()), text(report), word]);
    }

    /// Makes the kernel find an error in the file system: it is read-only from then on.
    pub fn break_down(&self) {
        let name = self.device.trim_start_matches("/dev/");
        let trigger = format!("/sys/fs/ext4/{name}/trigger_fs_error");
        fs_err::write(trigger, "a test").expect("break the file system");
    }

    /// Repairs the unmounted file system.
    pub fn repair(&self) {
        let done = Command::new("fsck.ext4").args(["-p", &self.device]).output().expect("start");
        assert!(matches!(done.status.code(), Some(0 | 1)), "{done:?}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily: a process of a test that has failed may still be ending.
            Command::new("umount").args(["--lazy", text(&self.root())]).output().ok();
        }
        Command::new("losetup").args(["--detach", &self.device]).output().ok();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[track_caller]
fn run(program: &str, arguments: &[&str]) -> String {
    let done = Command::new(program).args(arguments).output();
    let done = done.unwrap_or_else(|error| panic!("start {program}: {error}"));
    assert!(done.status.success(), "{program} {arguments:?}: {done:?}");
    String::from_utf8(done.stdout).expect("UTF-8")
}
