//! Secrets of collectors are kept sealed: AES-256-GCM, bound to their collector.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use secrecy::SecretSlice;
use uuid::Uuid;

use super::random;
use crate::backend::pki::hex;

/// A secret as its owner holds it.
pub(in crate::backend) type Unsealed = SecretSlice<u8>;

/// Seals and opens secrets.
pub(in crate::backend) struct Sealer {
    key: LessSafeKey,
    marks: hmac::Key,
    fingerprint: String,
}

impl Sealer {
    /// Sealing with a key of 32 bytes; `None` for another length.
    pub(in crate::backend) fn new(key: &[u8]) -> Option<Self> {
        let context = ring::digest::Context::new(&ring::digest::SHA256);
        let fingerprint = [b"pganalytics sealing key", key]
            .iter()
            .fold(context, |mut context, part| {
                context.update(part);
                context
            })
            .finish();
        let fingerprint = hex(fingerprint.as_ref().get(..8)?);
        let marks = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), b"pganalytics marks");
        Some(Self {
            key: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?),
            marks: hmac::Key::new(hmac::HMAC_SHA256, marks.as_ref()),
            fingerprint,
        })
    }

    /// Tells keys apart without telling the key.
    pub(in crate::backend) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// What is kept of a secret that is only recognised: without the key it says nothing about it.
    pub(in crate::backend) fn mark(&self, secret: &str) -> Vec<u8> {
        hmac::sign(&self.marks, secret.as_bytes()).as_ref().to_vec()
    }

    /// Nonce, ciphertext and tag, one after the other.
    pub(in crate::backend) fn seal(&self, owner: Uuid, secret: &[u8]) -> Vec<u8> {
        let nonce = random::<NONCE_LEN>();
        let mut sealed = secret.to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(owner.as_bytes()),
                &mut sealed,
            )
            .expect("a secret is far below the limit of the cipher");
        [nonce.as_slice(), &sealed].concat()
    }

    /// What [`Sealer::seal`] sealed for the same owner with the same key.
    pub(in crate::backend) fn open(&self, owner: Uuid, sealed: &[u8]) -> Option<Unsealed> {
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let secret =
            self.key.open_in_place(nonce, Aad::from(owner.as_bytes()), &mut sealed).ok()?;
        Some(Unsealed::from(secret.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret as _;

    #[test]
    fn a_sealed_secret_opens_for_its_owner_only() {
        let sealer = Sealer::new(&[7; 32]).expect("32 bytes");
        let (owner, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let text = sealer.seal(owner, b"secret");
        assert_ne!(text, sealer.seal(owner, b"secret"));
        let open = |owner, sealed: &[u8]| {
            sealer.open(owner, sealed).map(|secret| secret.expose_secret().to_vec())
        };
        assert_eq!(open(owner, &text).as_deref(), Some(b"secret".as_slice()));
        assert_eq!(open(other, &text), None);
        assert_eq!(open(owner, &text[..text.len() - 1]), None);
        assert_eq!(open(owner, b"short"), None);
        assert!(Sealer::new(&[8; 32]).expect("32 bytes").open(owner, &text).is_none());
        assert!(Sealer::new(&[7; 31]).is_none());
    }
}
