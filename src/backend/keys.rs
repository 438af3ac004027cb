//! The backend's own keys, in `keys/` of its data directory: made once, never overwritten.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::OpenOptionsExt as _;
use jiff::{SignedDuration, Timestamp};
use rcgen::KeyPair;
use secrecy::{ExposeSecret as _, SecretString};

use super::BackendError;
use super::auth::{Sealer, TokenKey, decode, encode, random};
use super::config::BackendConfig;
use super::pki::{self, Authority, Standing};

const AUTHORITY_CERTIFICATE: &str = "ca.crt";
const AUTHORITY_KEY: &str = "ca.key";
const SERVER_CERTIFICATE: &str = "server.crt";
const SERVER_KEY: &str = "server.key";
const REGISTRATION_SECRET: &str = "registration-secret";
const TOKEN_KEY: &str = "token.key";
const SEALING_KEY: &str = "sealing.key";
const FILES: [&str; 7] = [
    AUTHORITY_CERTIFICATE,
    AUTHORITY_KEY,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    REGISTRATION_SECRET,
    TOKEN_KEY,
    SEALING_KEY,
];

/// So long before its end an authority is warned of at each start.
const AUTHORITY_WARNED: SignedDuration = SignedDuration::from_hours(400 * 24);

/// Everything secret that the backend holds.
pub(super) struct Keys {
    pub(super) authority: Authority,
    /// PEM.
    pub(super) server_certificate: String,
    /// PEM.
    pub(super) server_key: SecretString,
    pub(super) registration_secret: SecretString,
    pub(super) tokens: TokenKey,
    pub(super) sealer: Sealer,
}

/// Where the keys of `data_dir` are.
pub(super) fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("keys")
}

/// Where the registration secret is.
pub(super) fn secret_file(config: &BackendConfig) -> PathBuf {
    let own = || directory(&config.data_dir).join(REGISTRATION_SECRET);
    config.registration_secret_file.clone().unwrap_or_else(own)
}

/// Makes `data_dir`, for its owner only, unless it is there.
pub(super) fn create_data_dir(data_dir: &Path) -> Result<(), BackendError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
    made.map_err(|err| BackendError::Keys(format!("cannot make {}: {err}", data_dir.display())))
}

/// Makes a whole set of keys. They appear all at once: a start that is cut short leaves none.
pub(super) fn create(
    data_dir: &Path,
    names: &[String],
    now: Timestamp,
) -> Result<(), BackendError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let directory = directory(data_dir);
    let draft = data_dir.join("keys.new");
    if draft.exists() {
        // Never renamed, so nothing was ever signed or sealed with it.
        fs_err::remove_dir_all(&draft)?;
    }
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&draft)
        .map_err(|err| BackendError::Keys(format!("cannot make {}: {err}", draft.display())))?;
    let (authority, authority_key) = Authority::create(now)?;
    let server_key = KeyPair::generate().map_err(pki::PkiError::from)?;
    let server_certificate = authority.certify_server(names, &server_key, now)?;
    let write = |name: &str, text: &str| write_private(&draft.join(name), text);
    write(AUTHORITY_CERTIFICATE, authority.certificate_pem())?;
    write(AUTHORITY_KEY, &authority_key)?;
    write(SERVER_CERTIFICATE, &server_certificate)?;
    write(SERVER_KEY, &server_key.serialize_pem())?;
    for name in [REGISTRATION_SECRET, TOKEN_KEY, SEALING_KEY] {
        write(name, &format!("{}\n", encode(&random::<32>())))?;
    }
    fs_err::File::open(&draft)?.sync_all()?;
    fs_err::rename(&draft, &directory)?;
    fs_err::File::open(data_dir)?.sync_all()?;
    Ok(())
}

/// Reads the keys of the data directory; the server certificate is made anew when it is stale or
/// missing.
pub(super) fn load(config: &BackendConfig, now: Timestamp) -> Result<Keys, BackendError> {
    let (directory, names) = (directory(&config.data_dir), &config.server_names);
    check_complete(&directory)?;
    let read = |name: &str| read_private(&directory.join(name));
    // Certificates are no secrets: agents' hosts copy the authority's from here.
    let read_open = |name: &str| fs_err::read_to_string(directory.join(name));
    let authority =
        Authority::load(read_open(AUTHORITY_CERTIFICATE)?, read(AUTHORITY_KEY)?.expose_secret())
            .map_err(|err| unusable(&directory.join(AUTHORITY_KEY), &err.to_string()))?;
    let server_key = read(SERVER_KEY)?;
    let server_certificate = server_certificate(&directory, &authority, (&server_key, names), now)?;
    let token_key = key_bytes(&directory.join(TOKEN_KEY))?;
    let sealing_key = key_bytes(&directory.join(SEALING_KEY))?;
    let sealer = Sealer::new(&sealing_key)
        .ok_or_else(|| unusable(&directory.join(SEALING_KEY), "32 bytes are needed"))?;
    Ok(Keys {
        authority,
        server_certificate,
        server_key,
        registration_secret: registration_secret(&secret_file(config))?,
        tokens: TokenKey::new(&token_key),
        sealer,
    })
}

/// Another server certificate, if the one that is kept has to be made anew by now.
pub(super) fn renewed(
    config: &BackendConfig,
    keys: &Keys,
    now: Timestamp,
) -> Result<Option<String>, BackendError> {
    let (directory, names) = (directory(&config.data_dir), &config.server_names);
    let held = fs_err::read_to_string(directory.join(SERVER_CERTIFICATE)).ok();
    let standing = held.map(|held| keys.authority.standing(&held, names, now));
    if matches!(standing, Some(Ok(Standing::Good | Standing::Foreign))) {
        return Ok(None);
    }
    server_certificate(&directory, &keys.authority, (&keys.server_key, names), now).map(Some)
}

/// The server certificate, made anew where the authority can and it has to be. While the authority
/// itself is not valid, it is the clock that is in doubt: a certificate that is there stays.
fn server_certificate(
    directory: &Path,
    authority: &Authority,
    (key, names): (&SecretString, &[String]),
    now: Timestamp,
) -> Result<String, BackendError> {
    let path = directory.join(SERVER_CERTIFICATE);
    let is_authority_valid =
        check_authority(&directory.join(AUTHORITY_CERTIFICATE), authority, now)?;
    let why = if path.exists() {
        let held = fs_err::read_to_string(&path)?;
        let standing = authority.standing(&held, names, now).map_err(|err| {
            let hint = "restore it from a backup, or remove it: a new one is made";
            BackendError::Keys(format!("{} cannot be used: {err}; hint: {hint}", path.display()))
        })?;
        match standing {
            Standing::Stale(why) if is_authority_valid => why,
            Standing::Good | Standing::Stale(_) => return Ok(held),
            Standing::Foreign => {
                tracing::warn!(
                    file = %path.display(),
                    "the server certificate is not of this backend's authority and is not renewed \
                     here; hint: remove it to have one made"
                );
                return Ok(held);
            }
        }
    } else {
        "it was missing"
    };
    let key = KeyPair::from_pem(key.expose_secret())
        .map_err(|err| unusable(&directory.join(SERVER_KEY), &err.to_string()))?;
    let made = authority.certify_server(names, &key, now)?;
    replace(&path, &made)?;
    tracing::info!(names = names.join(", "), why, "made a new server certificate");
    Ok(made)
}

/// Whether the authority's own certificate is valid, and what to do when it is not, or soon will
/// not be.
fn check_authority(path: &Path, of: &Authority, now: Timestamp) -> Result<bool, BackendError> {
    let (begins, ends) = of.validity().map_err(|err| unusable(path, &err.to_string()))?;
    let file = path.display();
    if now < begins {
        tracing::error!(
            %file, %begins, %now,
            "the authority is not valid yet, and agents refuse this backend; hint: set the clock; \
             if it is right, the keys were made while it was ahead: begin anew with an empty data \
             directory, and register every agent again"
        );
    } else if ends <= now {
        tracing::error!(
            %file, %ends, %now,
            "the authority has expired, and agents refuse this backend; hint: set the clock; if \
             it is right, begin anew with an empty data directory, and register every agent again"
        );
    } else if ends.duration_since(now) < AUTHORITY_WARNED {
        tracing::warn!(
            %file, %ends,
            "the authority expires; hint: before that, begin anew with an empty data directory, \
             and register every agent again"
        );
    }
    Ok(begins <= now && now < ends)
}

fn check_complete(directory: &Path) -> Result<(), BackendError> {
    let needed = FILES.into_iter().filter(|name| *name != SERVER_CERTIFICATE);
    let missing: Vec<&str> = needed.filter(|name| !directory.join(name).exists()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(BackendError::Keys(format!(
        "{} lacks {}; hint: restore the missing files from a backup, or move the whole data \
         directory away to begin anew: every agent must then register again",
        directory.display(),
        missing.join(", ")
    )))
}

fn registration_secret(path: &Path) -> Result<SecretString, BackendError> {
    let secret = SecretString::from(read_private(path)?.expose_secret().trim());
    if secret.expose_secret().len() < 16 {
        return Err(unusable(path, "a registration secret has 16 characters or more"));
    }
    Ok(secret)
}

fn key_bytes(path: &Path) -> Result<Vec<u8>, BackendError> {
    let text = read_private(path)?;
    decode(text.expose_secret().trim())
        .filter(|bytes| bytes.len() >= 32)
        .ok_or_else(|| unusable(path, "32 bytes in base64url are needed"))
}

fn read_private(path: &Path) -> Result<SecretString, BackendError> {
    use std::os::unix::fs::MetadataExt as _;
    let mode = fs_err::metadata(path)?.mode();
    if mode & 0o077 != 0 {
        return Err(BackendError::Keys(format!(
            "{} can be read by others (mode {:o}); hint: chmod 600 {}",
            path.display(),
            mode & 0o777,
            path.display()
        )));
    }
    Ok(SecretString::from(fs_err::read_to_string(path)?))
}

/// The mode is set before the first byte is written.
fn write_private(path: &Path, text: &str) -> Result<(), BackendError> {
    let mut file =
        fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(())
}

fn replace(path: &Path, text: &str) -> Result<(), BackendError> {
    let draft = path.with_extension("new");
    if draft.exists() {
        fs_err::remove_file(&draft)?;
    }
    write_private(&draft, text)?;
    fs_err::rename(&draft, path)?;
    Ok(())
}

fn unusable(path: &Path, why: &str) -> BackendError {
    BackendError::Keys(format!(
        "{} cannot be used: {why}; hint: restore it from a backup",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validity(keys: &Keys, names: &[String], now: Timestamp) -> Standing {
        keys.authority.standing(&keys.server_certificate, names, now).expect("readable")
    }

    /// A start with the clock years ahead leaves a server certificate of then, which the next start
    /// replaces. A clock that is behind the authority replaces nothing.
    #[test]
    fn a_certificate_of_another_time_is_made_anew() {
        let folder = tempfile::tempdir().expect("a directory");
        let data_dir = folder.path().join("data");
        create_data_dir(&data_dir).expect("made");
        let config = BackendConfig { data_dir: data_dir.clone(), ..BackendConfig::default() };
        let names = &config.server_names;
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let years = |n: i64| now + SignedDuration::from_hours(n * 365 * 24);
        create(&data_dir, names, now).expect("made");
        let first = load(&config, now).expect("loaded").server_certificate;
        assert_eq!(load(&config, now).expect("loaded").server_certificate, first);
        // Before the authority was made, and after its end.
        for wrong in [years(-50), years(25)] {
            assert_eq!(load(&config, wrong).expect("loaded").server_certificate, first);
        }
        let ahead = load(&config, years(5)).expect("loaded");
        assert_ne!(ahead.server_certificate, first);
        assert_eq!(validity(&ahead, names, now), Standing::Stale("it was not valid yet"));
        let back = load(&config, now).expect("loaded");
        assert_eq!(validity(&back, names, now), Standing::Good);
        let file = directory(&data_dir).join(SERVER_CERTIFICATE);
        assert_eq!(fs_err::read_to_string(&file).expect("read"), back.server_certificate);
        fs_err::remove_file(&file).expect("removed");
        let anew = load(&config, now).expect("loaded");
        assert_eq!(validity(&anew, names, now), Standing::Good);
        // One of another authority is its owner's business.
        let (other, _) = Authority::create(now).expect("an authority");
        let key = KeyPair::from_pem(anew.server_key.expose_secret()).expect("a key");
        let foreign = other.certify_server(names, &key, years(5)).expect("a certificate");
        fs_err::write(&file, &foreign).expect("written");
        assert_eq!(load(&config, now).expect("loaded").server_certificate, foreign);
    }
}
