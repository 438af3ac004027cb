//! The backend's own keys, in `keys/` of its data directory: made once, never overwritten.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::OpenOptionsExt as _;
use jiff::Timestamp;
use rcgen::KeyPair;
use secrecy::{ExposeSecret as _, SecretString};

use super::BackendError;
use super::auth::{Sealer, TokenKey, decode, encode, random};
use super::config::BackendConfig;
use super::pki::{self, Authority};

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

/// Reads the keys of the data directory; the server certificate is made anew when it is stale.
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
    let mut server_certificate = read_open(SERVER_CERTIFICATE)?;
    if pki::is_stale(&server_certificate, names, now)? {
        let key = KeyPair::from_pem(server_key.expose_secret())
            .map_err(|err| unusable(&directory.join(SERVER_KEY), &err.to_string()))?;
        server_certificate = authority.certify_server(names, &key, now)?;
        replace(&directory.join(SERVER_CERTIFICATE), &server_certificate)?;
        tracing::info!(names = names.join(", "), "made a new server certificate");
    }
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

fn check_complete(directory: &Path) -> Result<(), BackendError> {
    let missing: Vec<&str> =
        FILES.into_iter().filter(|name| !directory.join(name).exists()).collect();
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
