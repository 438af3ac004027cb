//! Commands that root runs in directories of the agent's user, who has put links there: nothing of
//! root's is given away, moved or written over, because root works as that user.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::backend::Served;
use crate::support::process::{Finished, agent, run};
use crate::support::site::Site;
use crate::support::until;

const LIMIT: Duration = Duration::from_secs(30);

/// The agent's user.
const USER: u32 = 65_533;

/// Everything below `path` and itself; links are not followed.
fn tree(path: &Path) -> Vec<PathBuf> {
    let mut all = vec![path.to_owned()];
    if fs_err::symlink_metadata(path).expect("there").is_dir() {
        for entry in fs_err::read_dir(path).expect("list") {
            all.extend(tree(&entry.expect("an entry").path()));
        }
    }
    all
}

fn give(path: &Path) {
    for path in tree(path) {
        lchown(&path, Some(USER), Some(USER)).expect("give");
    }
}

/// Whether this is root; CI is.
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root || std::env::var_os("CI").is_none(), "CI runs as root");
    is_root
}

/// A registered host whose files belong to its agent's user, and something of root's.
struct Trap {
    site: Site,
    of_root: tempfile::TempDir,
}

impl Trap {
    async fn set() -> Self {
        let site = Site::registered().await;
        let agent = site.run();
        agent.stop();
        give(site.directory.path());
        let of_root = crate::support::directory();
        fs_err::set_permissions(of_root.path(), PermissionsExt::from_mode(0o755)).expect("open");
        for name in ["shadow", "sub/key"] {
            let file = of_root.path().join(name);
            fs_err::create_dir_all(file.parent().expect("a folder")).expect("make");
            fs_err::write(&file, "root's own").expect("write");
            fs_err::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("close");
        }
        Self { site, of_root }
    }

    /// The user puts a link to what is root's at `place` of its own directory.
    fn link(&self, place: &str, target: &str) {
        let place = self.site.directory.path().join(place);
        if place.is_dir() {
            fs_err::remove_dir_all(&place).expect("remove");
        } else if place.exists() {
            fs_err::remove_file(&place).expect("remove");
        }
        symlink(self.of_root.path().join(target), &place).expect("link");
        lchown(&place, Some(USER), Some(USER)).expect("give");
    }

    /// What is root's: owner, mode and content of each file.
    fn of_root(&self) -> BTreeMap<PathBuf, (u32, u32, Vec<u8>)> {
        let seen = |path: PathBuf| {
            let data = fs_err::symlink_metadata(&path).expect("there");
            let content = if data.is_dir() { Vec::new() } else { fs_err::read(&path).expect("it") };
            (path, (data.uid(), data.mode(), content))
        };
        tree(self.of_root.path()).into_iter().map(seen).collect()
    }
}

/// Whatever the user has put there, and whatever root runs.
#[tokio::test(flavor = "multi_thread")]
async fn root_gives_nothing_away() {
    if !is_root() {
        return;
    }
    let secret = |site: &Site| {
        let file = crate::support::directory();
        let path = file.path().join("secret");
        fs_err::write(&path, site.served.secret()).expect("write");
        (file, path)
    };
    let links = [
        ("state/register.lock", "shadow"),
        ("small/queue/x", ""),
        ("small/queue/trash", ""),
        ("small/queue/segments", ""),
        ("small/queue/lock", "new"),
        ("small/queue/state", ""),
        ("small/queue/dead.ndjson", "shadow"),
        ("small/queue", ""),
        ("state", ""),
        ("state/replay.json", "shadow"),
    ];
    for (place, target) in links {
        let trap = Trap::set().await;
        let (_folder, secret) = secret(&trap.site);
        let secret = secret.to_str().expect("UTF-8");
        trap.link(place, target);
        let before = trap.of_root();
        let commands: [&[&str]; 4] = [
            &["register", "--force", "--secret-file", secret],
            &["replay", "--wait", "1s"],
            &["queue", "repair", "--apply"],
            &["inspect", "--verify"],
        ];
        for command in commands {
            let done = trap.site.command(command);
            assert!(done.code.is_some(), "{place} {command:?}: {done:?}");
            assert_eq!(trap.of_root(), before, "{place} {command:?}: {done:?}");
        }
        let mut agent = trap.site.start();
        until("it runs, or has ended", LIMIT, || {
            !agent.is_running() || agent.stderr().contains("the agent runs")
        });
        drop(agent);
        assert_eq!(trap.of_root(), before, "{place} run");
    }
}

/// What root makes there is the user's, who goes on with it.
#[tokio::test(flavor = "multi_thread")]
async fn what_root_makes_is_the_owners() {
    if !is_root() {
        return;
    }
    let trap = Trap::set().await;
    let directory = trap.site.directory.path();
    let secret = trap.of_root.path().join("secret");
    fs_err::write(&secret, trap.site.served.secret()).expect("write");
    fs_err::set_permissions(&secret, PermissionsExt::from_mode(0o600)).expect("close");
    let secret = secret.to_str().expect("UTF-8");
    // The secret can be read by root alone, and the certificate is shown beside it.
    let done = trap.site.command(&["register", "--force", "--secret-file", secret]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.stderr.contains("root works here as user 65533"), "{done:?}");
    for command in [&["replay"][..], &["queue", "repair", "--apply"], &["inspect", "segments"]] {
        let done = trap.site.command(command);
        assert_eq!(done.code, Some(0), "{command:?}: {done:?}");
    }
    // What a configuration names, a log for example, is read with its user's rights.
    let done = trap.site.command(&["collect", "sysstat"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.stderr.contains("root works here as user 65533"), "{done:?}");
    let agent = trap.site.run();
    let log = agent.stop().stderr;
    assert!(log.contains("root works here as user 65533"), "{log}");
    let of_root = |path: &PathBuf| fs_err::symlink_metadata(path).expect("there").uid() == 0;
    let left: Vec<_> = tree(directory).into_iter().filter(of_root).collect();
    assert_eq!(left, Vec::<PathBuf>::new(), "root has left files");
}

/// A configuration that is its user's says where root would write: the same holds.
#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_of_a_users_moves_nothing_of_roots() {
    if !is_root() {
        return;
    }
    let trap = Trap::set().await;
    let text = fs_err::read_to_string(trap.site.config()).expect("read");
    let of_root = trap.of_root.path().to_str().expect("UTF-8");
    let text = text.replace(trap.site.directory.path().to_str().expect("UTF-8"), of_root);
    fs_err::write(trap.site.config(), text).expect("write");
    lchown(trap.site.config(), Some(USER), Some(USER)).expect("give");
    fs_err::create_dir_all(trap.of_root.path().join("small/queue")).expect("make");
    let before = trap.of_root();
    for command in [&["inspect"][..], &["replay"], &["queue", "repair", "--apply"]] {
        let done = trap.site.command(command);
        let told = done.stderr.contains("root works here as user 65533");
        assert!(told, "{command:?}: {done:?}");
        assert_eq!(trap.of_root(), before, "{command:?}: {done:?}");
    }
}

/// The same of the backend's directory.
#[tokio::test(flavor = "multi_thread")]
async fn the_backends_directory_stays_its_users() {
    if !is_root() {
        return;
    }
    let mut served = Served::start().await;
    served.stop().await;
    let data = served.config.data_dir.clone();
    give(&data);
    let folder = crate::support::directory();
    let config = folder.path().join("backend.toml");
    let text = format!(
        "[backend]\ndata_dir = {data:?}\nlisten = \"127.0.0.1:0\"\npage_listen = \"off\"\n"
    );
    fs_err::write(&config, text).expect("write");
    let config = config.to_str().expect("UTF-8");
    let add = |name: &str| {
        let mut command = Command::new("sh");
        let program = agent([]).get_program().to_str().expect("UTF-8").to_owned();
        let line = format!(
            "echo a-long-enough-password | {program} backend user add {name} --config {config}"
        );
        command.args(["-c", &line]).stdin(Stdio::null());
        run(command)
    };
    let done: Finished = add("ann");
    assert_eq!(done.code, Some(0), "{done:?}");
    let listed = run(agent(["backend", "collector", "list", "--config", config]));
    assert_eq!(listed.code, Some(0), "{listed:?}");
    let of_root = |path: &PathBuf| fs_err::symlink_metadata(path).expect("there").uid() == 0;
    let left: Vec<_> = tree(&data).into_iter().filter(of_root).collect();
    assert_eq!(left, Vec::<PathBuf>::new(), "root has left files");

    // Its user has put a link in the place of the store.
    let of_root = crate::support::directory();
    fs_err::set_permissions(of_root.path(), PermissionsExt::from_mode(0o755)).expect("open");
    for entry in fs_err::read_dir(&data).expect("list") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            fs_err::remove_file(path).expect("remove");
        }
    }
    let store = data.join("metrics.db");
    symlink(of_root.path().join("new"), &store).expect("link");
    lchown(&store, Some(USER), Some(USER)).expect("give");
    let done = add("bob");
    assert_eq!(done.code, Some(1), "{done:?}");
    assert_eq!(fs_err::read_dir(of_root.path()).expect("list").count(), 0, "{done:?}");
}
