//! Passwords of users: Argon2id with the crate's parameters, 19 MiB and two passes.

use std::sync::Arc;

use argon2::Argon2;
use argon2::password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Semaphore;

use super::{encode, random};

/// Shorter ones are guessed.
const LENGTH_MIN: usize = 10;
/// Longer ones are no passwords.
const LENGTH_MAX: usize = 1024;
/// Each check holds 19 MiB and a core.
const AT_ONCE: usize = 2;

/// Checks passwords, a few at a time, on the blocking threads.
pub(in crate::backend) struct Passwords {
    turns: Arc<Semaphore>,
    /// The hash of a password that nobody knows: checked when there is no such user, so that a
    /// login takes the same time.
    nobody: String,
}

/// Why a password was not taken.
#[derive(Debug, thiserror::Error)]
pub(in crate::backend) enum PasswordError {
    /// Too short or too long.
    #[error("a password has {LENGTH_MIN} to {LENGTH_MAX} characters")]
    Length,
    /// The hash function failed.
    #[error("cannot hash the password: {0}")]
    Hash(argon2::password_hash::Error),
}

impl Passwords {
    /// Ready to check.
    pub(in crate::backend) fn new() -> Result<Self, PasswordError> {
        let nobody = Self::hash(&SecretString::from(encode(&random::<32>())))?;
        Ok(Self { turns: Arc::new(Semaphore::new(AT_ONCE)), nobody })
    }

    /// The hash of a new password, in PHC form. Takes tens of milliseconds.
    pub(in crate::backend) fn hash(password: &SecretString) -> Result<String, PasswordError> {
        let password = password.expose_secret();
        if !(LENGTH_MIN..=LENGTH_MAX).contains(&password.chars().count()) {
            return Err(PasswordError::Length);
        }
        let salt = SaltString::encode_b64(&random::<16>()).map_err(PasswordError::Hash)?;
        let hash = Argon2::default().hash_password(password.as_bytes(), &salt);
        Ok(hash.map_err(PasswordError::Hash)?.to_string())
    }

    /// Whether `password` is the one that was hashed; without a hash `false`, after the same time.
    pub(in crate::backend) async fn verify(
        &self,
        hash: Option<String>,
        password: SecretString,
    ) -> bool {
        let Ok(turn) = Arc::clone(&self.turns).acquire_owned().await else { return false };
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.nobody.clone());
        let task = tokio::task::spawn_blocking(move || {
            let _turn = turn; // until it is done, whether somebody waits for it or not
            PasswordHash::new(&hash).is_ok_and(|hash| {
                let password = password.expose_secret().as_bytes();
                Argon2::default().verify_password(password, &hash).is_ok()
            })
        });
        task.await.unwrap_or(false) && known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who asks and goes away does not make room for others: the work goes on.
    #[tokio::test]
    async fn a_check_has_its_turn_until_it_is_done() {
        let passwords = Passwords::new().unwrap();
        let check = passwords.verify(None, SecretString::from("correct horse battery"));
        let gone = tokio::time::timeout(std::time::Duration::ZERO, check).await;
        assert!(gone.is_err(), "it takes longer than that");
        assert_eq!(passwords.turns.available_permits(), AT_ONCE - 1);
        let all = passwords.turns.acquire_many(u32::try_from(AT_ONCE).unwrap()).await;
        assert!(all.is_ok(), "and is done some time");
    }

    #[tokio::test]
    async fn only_the_same_password_passes() {
        let hash = Passwords::hash(&"correct horse".into()).expect("a hash");
        let passwords = Passwords::new().expect("ready");
        assert!(passwords.verify(Some(hash.clone()), "correct horse".into()).await);
        assert!(!passwords.verify(Some(hash.clone()), "correct horsf".into()).await);
        assert!(!passwords.verify(Some("no hash".into()), "correct horse".into()).await);
        assert!(!passwords.verify(None, "correct horse".into()).await);
        assert!(hash.starts_with("$argon2id$"), "{hash}");
        assert!(matches!(Passwords::hash(&"short".into()), Err(PasswordError::Length)));
    }
}
