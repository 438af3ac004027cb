//! Who may do what: tokens, passwords, sealed secrets, and how often one may try.

mod attempts;
mod familiar;
mod password;
mod seal;
mod token;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom as _, SystemRandom};

pub(super) use attempts::Attempts;
pub(super) use familiar::Familiar;
pub(super) use password::{PasswordError, Passwords};
pub(super) use seal::Sealer;
pub(super) use token::{
    Expiry, Refusal, Subject, TokenKey, UserToken, claimed_collector, key_id, verify_collector,
};

/// Random bytes of the operating system.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the operating system has random bytes");
    bytes
}

/// Base64url without padding.
pub(super) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads what [`encode`] writes.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}
