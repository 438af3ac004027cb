use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::sync::Mutex;

use super::*;
use crate::metric::validate;

const TABLE: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
23 27 0:22 / /sys rw - sysfs sysfs rw
24 27 0:6 / /dev rw - devtmpfs devtmpfs rw
25 24 0:23 / /dev/shm rw - tmpfs tmpfs rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,errors=remount-ro
28 27 0:25 / /tmp rw - tmpfs tmpfs rw
29 27 8:1 / /srv/my\\040data rw master:1 propagate_from:2 - xfs /dev/sdb1 rw
30 27 8:1 /sub /mnt rw - xfs /dev/sdb1 rw
31 27 8:17 / /backup rw - ext4 /dev/sdc1 rw,emergency_ro
32 27 8:33 / /cdrom ro - ext4 /dev/sdd1 rw
33 27 0:40 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw
34 27 0:41 / /home rw - nfs4 server:/home rw
35 27 0:42 / /pg rw - nfs4 server:/pg rw
36 24 0:43 / /dev/shm rw - tmpfs tmpfs rw,size=5k
37 27 8:49 / /empty rw - ext4  rw
nonsense
38 27 8:50 / /nodash rw
";

fn selected(keep: &[&str]) -> Vec<Mount> {
    let keep: Vec<PathBuf> = keep.iter().map(PathBuf::from).collect();
    mounts::select(mounts::parse(TABLE.as_bytes()), &keep)
}

#[test]
fn file_systems_that_fill_up_are_selected() {
    let check = |keep: &[&str], expected: &[&str]| {
        let points: Vec<_> = selected(keep).iter().map(|m| m.point.display().to_string()).collect();
        assert_eq!(points, expected, "{keep:?}");
    };
    let usual = ["/", "/backup", "/cdrom", "/dev/shm", "/empty", "/srv/my data"];
    check(&[], &usual);
    check(&["/srv/my data/pg"], &usual);
    check(
        &["/pg/17/main", "/tmp/x"],
        &["/", "/backup", "/cdrom", "/dev/shm", "/empty", "/pg", "/srv/my data", "/tmp"],
    );
}

#[test]
fn a_file_system_is_listed_once() {
    let mounts = selected(&[]);
    let find = |point: &str| {
        mounts.iter().find(|m| m.point == Path::new(point)).expect("selected").clone()
    };
    let data = find("/srv/my data");
    assert_eq!(data.device, "/dev/sdb1");
    assert_eq!(data.aliases, [PathBuf::from("/mnt")]);
    assert_eq!(find("/dev/shm").number, "0:43", "the later mount hides the earlier");
    assert_eq!(find("/empty").device, "none");
    let read_only: Vec<_> =
        mounts.iter().filter(|m| m.read_only).map(|m| m.point.display().to_string()).collect();
    assert_eq!(read_only, ["/backup", "/cdrom"]);
}

#[test]
fn container_root_is_kept_whatever_its_type() {
    let table =
        b"1 0 0:99 / / rw - overlay overlay rw\n2 1 8:1 /x /etc/hosts rw - ext4 /dev/sda1 rw\n";
    let points: Vec<_> =
        mounts::select(mounts::parse(table), &[]).into_iter().map(|m| m.point).collect();
    assert_eq!(points, [PathBuf::from("/"), PathBuf::from("/etc/hosts")]);
}

/// C44: percent as df counts it, GiB with one decimal, inodes only where they are counted.
#[test]
fn numbers_are_those_of_df() {
    let statvfs = Statvfs {
        block_bytes: 4096,
        blocks: 26_214_400,
        blocks_free: 13_107_200,
        blocks_available: 11_796_480,
        inodes: 100,
        inodes_free: 25,
    };
    let filesystem = |statvfs| {
        let mount = Mount {
            device: "/dev/sda1".into(),
            point: "/".into(),
            fstype: "ext4".into(),
            ..Mount::default()
        };
        serde_json::to_value(filesystem(mount, Answer::Known(statvfs)).expect("listed"))
            .expect("encodes")
    };
    assert_eq!(
        filesystem(statvfs),
        json!({
            "device": "/dev/sda1", "mount": "/", "fstype": "ext4",
            "read_only": false, "stuck": false,
            "total_gb": 100.0, "used_gb": 50.0, "free_gb": 50.0, "percent_used": 52.63,
            "total_bytes": 107_374_182_400_u64, "used_bytes": 53_687_091_200_u64,
            "free_bytes": 53_687_091_200_u64, "available_bytes": 48_318_382_080_u64,
            "inodes_total": 100, "inodes_used": 75, "inodes_free": 25,
        })
    );
    let none = filesystem(Statvfs { block_bytes: 4096, ..Statvfs::default() });
    assert_eq!((none.get("inodes_total"), &none["percent_used"]), (None, &json!(null)));
}

/// While this is held, `hang` hangs on `/hung`.
static HUNG: Mutex<()> = Mutex::const_new(());

/// How often `hang` was asked for `/hung`.
static CALLS: AtomicUsize = AtomicUsize::new(0);

fn hang(path: &Path) -> std::io::Result<Statvfs> {
    match path.to_str() {
        Some("/hung") => {
            CALLS.fetch_add(1, Ordering::Relaxed);
            drop(HUNG.blocking_lock());
        }
        Some("/gone") => return Err(std::io::ErrorKind::NotFound.into()),
        _ => {}
    }
    Ok(Statvfs { block_bytes: 1, blocks: 10, ..Statvfs::default() })
}

#[tokio::test]
async fn hanging_mount_is_stuck_until_it_returns() {
    let mut probes = Probes::new(Duration::from_millis(50), hang);
    let paths: Vec<PathBuf> = ["/a", "/hung", "/gone", "/b"].iter().map(PathBuf::from).collect();
    let known = Answer::Known(Statvfs { block_bytes: 1, blocks: 10, ..Statvfs::default() });
    let held = HUNG.lock().await;
    // A caller that gives up leaves a call behind, which counts as one that hangs.
    let given_up = tokio::time::timeout(Duration::from_millis(5), probes.ask(paths.clone())).await;
    assert!(given_up.is_err());
    for _ in 0..3 {
        let answers = probes.ask(paths.clone()).await;
        assert_eq!(answers, [known, Answer::Stuck, Answer::Failed, known]);
    }
    assert_eq!(CALLS.load(Ordering::Relaxed), 1, "not asked again while the first call hangs");
    drop(held);
    // The call returns on its own thread, so it may take a moment to be seen.
    for _ in 0..200 {
        if probes.ask(paths.clone()).await == [known, known, Answer::Failed, known] {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the mount is asked again once its call has returned");
}

#[tokio::test]
async fn this_host_has_a_root_file_system() {
    let mut collector = DiskUsageCollector::new(DiskUsageConfig::default());
    let now = crate::clock::now();
    let metric = collector.collect(now).await.expect("collects").metrics.remove(0);
    validate(&metric, now).expect("valid");
    let root = metric["filesystems"].as_array().expect("a list").iter().find(|f| f["mount"] == "/");
    assert!(root.expect("listed")["total_bytes"].as_u64().expect("a number") > 0, "{metric}");

    let config = DiskUsageConfig { mountinfo: "/nonexistent".into(), ..DiskUsageConfig::default() };
    let error = DiskUsageCollector::new(config).collect(now).await.expect_err("no table");
    assert!(error.to_string().contains("/nonexistent"), "{error}");
}
