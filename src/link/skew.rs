//! The server's clock as this host knows it, and what it decides.
//!
//! Tokens always follow it. Certificates do when the operator trusts one CA for the backend
//! (`tls.clock`): a host whose own clock is years off finds every certificate expired or not begun,
//! and could never learn the time. So when nothing but the time of the server's certificate is
//! wrong, the server is asked for its time, without a token, and is believed when that time lies
//! within the validity of its certificate.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::time_provider::TimeProvider;

use super::client::{Client, Outgoing};
use super::dates::{self, Exchange, Moment};
use super::endpoint::Endpoint;
use super::tls::{self, Judge, OwnCertificate, Trust, Validity};
use super::{LinkConfig, SendError, SendErrorKind};
use crate::clock::{self, HostClock};

/// Whose clock decides whether the server's certificate is good now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CertificateClock {
    /// The server's, where one CA is trusted; the host's where the system's roots are.
    #[default]
    Server,
    /// The host's.
    Host,
}

/// This host's clock and what answers have said of the server's. Clones know the same.
#[derive(Debug, Clone, Default)]
pub struct ServerClock(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    host: HostClock,
    /// Server minus host.
    offset_ms: AtomicI64,
    is_heard: AtomicBool,
    /// When the latest request was sent that was answered.
    asked: Mutex<Option<Moment>>,
    /// The same offset, as far as a server's certificate vouches for it.
    vouched_ms: AtomicI64,
    is_vouched: AtomicBool,
    /// When the certificate that a server showed last is good.
    shown: Mutex<Option<Validity>>,
    /// Changes are told by somebody else.
    is_quiet: bool,
}

/// A change of the offset below this is not worth a word.
const WORTH_A_WORD_MS: u64 = 5_000;

impl ServerClock {
    /// Nothing is known yet of the server's clock.
    pub fn of(host: HostClock) -> Self {
        Self(Arc::new(Known { host, ..Known::default() }))
    }

    /// The host's time.
    pub fn host_now(&self) -> Timestamp {
        self.0.host.now()
    }

    /// The server's time, as far as it is known.
    pub fn now(&self) -> Timestamp {
        dates::shift(self.host_now(), self.offset_ms())
    }

    /// The server's clock minus this host's, in milliseconds; 0 until the first answer.
    pub fn offset_ms(&self) -> i64 {
        self.0.offset_ms.load(Ordering::Relaxed)
    }

    /// Whether an answer has told the server's time.
    pub fn is_known(&self) -> bool {
        self.0.is_heard.load(Ordering::Relaxed)
    }

    /// Whether an answer has come, and this host's clock was not set since: what is known of the
    /// offset holds. An answer that does not say the time counts, because another would not say it
    /// either.
    pub fn is_current(&self) -> bool {
        let asked = *self.0.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.is_some_and(|asked| !asked.is_across_a_jump(self.moment()))
    }

    /// This moment by the host's clocks.
    pub(super) fn moment(&self) -> Moment {
        Moment { wall: self.host_now(), monotonic: clock::monotonic() }
    }

    /// The request that was `sent` then is answered, and what the answer says of the time is taken.
    pub(super) fn answered(&self, sent: Moment) {
        *self.0.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(sent);
    }

    /// Takes the `Date` of an answer.
    pub(super) fn learn(&self, exchange: Exchange, date: Timestamp) {
        self.set(dates::next_offset_ms(self.offset_ms(), exchange, date));
        let shown = *self.0.shown.lock().unwrap_or_else(PoisonError::into_inner);
        // A server whose clock is broken must not make its own certificate look bad.
        if shown.is_some_and(|validity| validity.contains(date)) {
            self.vouch();
        }
    }

    /// The certificate of a server that was verified.
    pub(super) fn saw(&self, validity: Validity) {
        *self.0.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(validity);
    }

    fn set(&self, offset_ms: i64) {
        let before = self.0.offset_ms.swap(offset_ms, Ordering::Relaxed);
        self.0.is_heard.store(true, Ordering::Relaxed);
        if offset_ms.abs_diff(before) >= WORTH_A_WORD_MS && !self.0.is_quiet {
            tracing::warn!(
                offset_ms,
                host = clock::rfc3339(self.host_now()),
                server = clock::rfc3339(self.now()),
                "this host's clock differs from the backend's; tokens follow the backend's clock, \
                 and so does tls.clock = \"server\""
            );
        }
    }

    fn vouch(&self) {
        self.0.vouched_ms.store(self.offset_ms(), Ordering::Relaxed);
        self.0.is_vouched.store(true, Ordering::Relaxed);
    }

    /// The time that certificates are judged by.
    pub(super) fn for_certificates(&self, judge: Judge) -> Arc<dyn TimeProvider> {
        Arc::new(CertificateTime { clock: self.clone(), judge })
    }
}

#[derive(Debug)]
struct CertificateTime {
    clock: ServerClock,
    judge: Judge,
}

impl TimeProvider for CertificateTime {
    fn current_time(&self) -> Option<UnixTime> {
        let offset = match self.judge {
            Judge::Server => self.clock.0.vouched_ms.load(Ordering::Relaxed),
            Judge::Host | Judge::Nobody => 0,
        };
        Some(tls::unix_time(dates::shift(self.clock.host_now(), offset)))
    }
}

/// Asks a server for its time when nothing but the time of its certificate is wrong.
#[derive(Debug)]
pub(super) struct TimeAsker {
    endpoints: Vec<Endpoint>,
    settings: LinkConfig,
    certificates: Vec<CertificateDer<'static>>,
    own: Option<Arc<OwnCertificate>>,
}

impl TimeAsker {
    /// `None` where the host's clock decides.
    pub(super) fn new(
        endpoints: &[Endpoint],
        settings: &LinkConfig,
        trust: &Trust,
        own: Option<&Arc<OwnCertificate>>,
    ) -> Option<Self> {
        let Trust::Only(certificates) = trust else { return None };
        (settings.tls.clock == CertificateClock::Server).then(|| Self {
            endpoints: endpoints.to_vec(),
            settings: settings.clone(),
            certificates: certificates.clone(),
            own: own.cloned(),
        })
    }

    /// Whether `error` was one of time only, and the clock is known now: it is worth another try.
    pub(super) async fn helps(&self, error: &SendError) -> bool {
        use SendErrorKind::{TlsExpired, TlsNotYetValid};
        matches!(error.kind, TlsExpired | TlsNotYetValid) && self.ask().await
    }

    async fn ask(&self) -> bool {
        let clock = &self.settings.clock;
        // What this server says is nobody's business until its certificate vouches for it.
        let heard = Known { host: clock.0.host, is_quiet: true, ..Known::default() };
        let heard = ServerClock(Arc::new(heard));
        let trust = Trust::Only(self.certificates.clone());
        let tls = tls::timed_client_config(trust, self.own.clone(), &heard, Judge::Nobody);
        let Ok(tls) = tls else { return false };
        let settings = LinkConfig { clock: heard.clone(), ..self.settings.clone() };
        let Ok(client) = Client::new(self.endpoints.clone(), &settings, Some(&tls)) else {
            return false;
        };
        if let Err(error) = client.send(Outgoing::probe("/version")).await {
            tracing::debug!(%error, "the server's time is not to be had");
            return false;
        }
        let vouched = heard.0.is_vouched.load(Ordering::Relaxed);
        if vouched {
            clock.set(heard.offset_ms());
            clock.vouch();
        }
        vouched
    }
}
