//! Passwords that stand in a configuration which others can read.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Keys whose values are, or may hold, passwords.
const KEYS: [(&str, &str); 2] = [("postgres", "password"), ("forward", "proxy")];

/// What to say of the file at `path` when every user of the host can read a password in it.
pub fn exposed(path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.mode();
    if mode & 0o004 == 0 {
        return None;
    }
    let key = password_in(&std::fs::read_to_string(path).ok()?)?;
    let path = path.display();
    Some(format!(
        "every user of this host can read {key} in {path} (mode {:04o}); hint: chmod o-r {path}",
        mode & 0o7777
    ))
}

/// What to say of the file at `path`, a secret that `key` names, when every user of the host can
/// read it.
pub fn exposed_file(key: &str, path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.mode();
    let path = path.display();
    (mode & 0o004 != 0).then(|| {
        let mode = mode & 0o7777;
        format!("every user of this host can read {key} {path} (mode {mode:04o}); hint: chmod o-r")
    })
}

/// Who else than root and the user of this process can say what is in the file at `path`, if
/// anybody can: its owner, its group or others, or whoever may put another file in its place.
pub fn written_by_others(path: &Path) -> Option<String> {
    const STICKY: u32 = 0o1000;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    for path in [Some(path), folder].into_iter().flatten() {
        let shown = path.display();
        let Ok(facts) = std::fs::metadata(path) else {
            return Some(format!("who can write {shown} is not known"));
        };
        let (mode, owner) = (facts.mode() & 0o7777, facts.uid());
        if owner != 0 && owner != rustix::process::geteuid().as_raw() {
            return Some(format!("{shown} belongs to another user (id {owner})"));
        }
        if mode & 0o022 != 0 && !(facts.is_dir() && mode & STICKY != 0) {
            return Some(format!("{shown} can be written by others (mode {mode:04o})"));
        }
    }
    None
}

/// The first key with a password in it. One that the environment has is not in the file.
fn password_in(text: &str) -> Option<String> {
    let document: toml::Table = text.parse().ok()?;
    let is_password = |(section, key): &(&str, &str)| {
        let found = document.get(*section)?;
        let several = found.as_array().map_or(std::slice::from_ref(found), Vec::as_slice);
        let is_url = *key == "proxy";
        let holds = |value: &str| {
            !value.is_empty() && !value.contains("${") && (!is_url || value.contains('@'))
        };
        let mut values = several.iter().filter_map(|one| one.get(*key)?.as_str());
        values.any(holds).then(|| format!("{section}.{key}"))
    };
    KEYS.iter().find_map(is_password)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_passwords_that_everyone_can_read_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        let said = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            exposed(&path)
        };
        let text = "[postgres]\npassword = \"hush\"\n";
        let warning = said(text, 0o644).unwrap();
        assert!(warning.contains("postgres.password") && !warning.contains("hush"), "{warning}");
        assert_eq!(said(text, 0o640), None);
        assert_eq!(said("[postgres]\npassword = \"${PGPASSWORD}\"\n", 0o644), None);
        assert_eq!(said("[postgres]\npassword = \"\"\n", 0o644), None);
        let several = "[[postgres]]\n[[postgres]]\nname = \"b\"\npassword = \"hush\"\n";
        assert!(said(several, 0o644).is_some());
        assert_eq!(said("[forward]\nproxy = \"http://proxy:3128\"\n", 0o644), None);
        assert!(said("[forward]\nproxy = \"http://u:p@proxy:3128\"\n", 0o604).is_some());
        let token = exposed_file("backend.token_file", &path).unwrap();
        assert!(token.contains("backend.token_file") && token.contains("0604"), "{token}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(exposed_file("backend.token_file", &path), None);
    }
}
