//! How much a backend may send: what it adds to its answers, such as interim answers (1xx) or
//! frames of HTTP/2 without end, costs this host CPU time for as long as a request waits.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What an answer may have beside its body: heads, interim answers, frames; and another that was
/// given up, and comes all the same. Bytes.
const BESIDE_BODY_MAX: u64 = 1 << 20;

/// The bytes that the connections to one backend may still bring. Each request brings more; what
/// is not used is kept for a few requests.
#[derive(Debug, Clone)]
pub(super) struct Allowance(Arc<Account>);

#[derive(Debug)]
struct Account {
    left: AtomicU64,
    of_request: u64,
    most: u64,
    is_exceeded: AtomicBool,
}

/// The backend has sent more than it may.
#[derive(Debug)]
struct Exceeded;

impl Allowance {
    /// For answers with bodies of so many bytes, and so many requests at a time.
    pub(super) fn new(answer_bytes_max: usize, requests_max: usize) -> Self {
        let body = u64::try_from(answer_bytes_max).unwrap_or(u64::MAX);
        let of_request = body.saturating_add(BESIDE_BODY_MAX);
        let most = of_request.saturating_mul(u64::try_from(requests_max).unwrap_or(u64::MAX));
        let (left, is_exceeded) = (AtomicU64::new(0), AtomicBool::new(false));
        Self(Arc::new(Account { left, of_request, most, is_exceeded }))
    }

    /// A request begins.
    pub(super) fn grant(&self) {
        let Account { left, of_request, most, .. } = &*self.0;
        let more = |left: u64| Some(left.saturating_add(*of_request).min(*most));
        let _ = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// So many bytes have come. An error when they are too many: the connection is to end.
    pub(super) fn spend(&self, bytes: usize) -> io::Result<()> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let rest = |left: u64| left.checked_sub(bytes);
        if self.0.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest).is_ok() {
            return Ok(());
        }
        self.0.is_exceeded.store(true, Ordering::Relaxed);
        Err(io::Error::new(io::ErrorKind::InvalidData, Exceeded))
    }

    /// Whether a connection has ended for this since the last time that somebody asked.
    pub(super) fn take_exceeded(&self) -> bool {
        self.0.is_exceeded.swap(false, Ordering::Relaxed)
    }
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the backend sends without end")
    }
}

impl std::error::Error for Exceeded {}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request adds its allowance, up to the allowance of a few: many requests do not pile it up.
    #[test]
    fn requests_bring_what_may_be_sent() {
        let allowance = Allowance::new(100, 2);
        let one = usize::try_from(BESIDE_BODY_MAX).unwrap() + 100;
        allowance.spend(1).expect_err("nobody has asked");
        assert!(allowance.take_exceeded() && !allowance.take_exceeded());
        allowance.grant();
        allowance.spend(one).expect("an answer");
        allowance.spend(1).expect_err("all is used");
        for _ in 0..5 {
            allowance.grant();
        }
        allowance.spend(2 * one).expect("of the last two");
        allowance.spend(1).expect_err("all is used");
    }
}
