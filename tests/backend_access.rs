//! Who is refused, for how long, and how often that is said: tokens, certificates, storms.

use std::time::Duration;

use pganalytics::backend::store::{Audit, Renewal};
use pganalytics::clock;
use rcgen::ExtendedKeyUsagePurpose::{self, ClientAuth, CodeSigning, ServerAuth};
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;

use crate::support::backend::Served;
use crate::support::until_async;

/// The registered certificate's end counts at each request, not only in the handshake: a
/// connection that is kept, and a TLS session that is resumed, live longer than it.
#[tokio::test]
async fn a_certificate_ends_on_open_connections_too() {
    let served = Served::start_with(|config| {
        config.lifetimes.client_certificate = Duration::from_secs(4);
    })
    .await;
    let host = served.register("db1").await;
    let mut open = host.client.connect().await.expect("connect");
    assert_eq!(host.ask(json!([])).over(&mut open).await.expect("it").status, 200);
    let refused = async || {
        let mut kept = host.client.connect().await.expect("connect");
        until_async("the certificate ends", Duration::from_secs(15), async || {
            let reply = host.client.try_send(host.ask(json!([]))).await;
            !matches!(reply, Ok(reply) if reply.status == 200)
        })
        .await;
        host.ask(json!([])).over(&mut kept).await.expect("an answer")
    };
    assert_eq!(refused().await.refused(403), "certificate_expired");
    let reply = host.ask(json!([])).over(&mut open).await.expect("an answer");
    assert_eq!(reply.refused(403), "certificate_expired");
    // With a session ticket of the time when it was good.
    if let Ok(reply) = host.client.try_send(host.ask(json!([]))).await {
        assert_eq!(reply.refused(403), "certificate_expired");
    }
}

/// A certificate of the backend's own authority that is not made for clients proves nothing, even
/// if it were registered.
#[tokio::test]
async fn a_certificate_without_the_clients_usage_proves_nothing() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let authority = std::fs::read_to_string(served.config.data_dir.join("keys/ca.key"));
    let authority = KeyPair::from_pem(&authority.expect("a key")).expect("a key");
    let certificate = served.running().ca_certificate();
    let issuer = Issuer::from_ca_cert_pem(certificate, authority).expect("an authority");
    let push_with = async |usages: Vec<ExtendedKeyUsagePurpose>| {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.extended_key_usages = usages;
        let forged = params.signed_by(&key, &issuer).expect("a certificate").pem();
        let der = CertificateDer::from_pem_slice(forged.as_bytes()).expect("PEM");
        let digest = ring::digest::digest(&ring::digest::SHA256, &der);
        let thumbprint =
            digest.as_ref().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        let renewal = Renewal {
            id: host.id.parse().expect("a UUID"),
            thumbprint,
            certificate_expires_at: clock::now(),
            audit: Audit {
                at: clock::now(),
                actor: "test".to_owned(),
                action: "test".to_owned(),
                subject: "test".to_owned(),
            },
        };
        assert!(served.running().store().renew_certificate(renewal).await.expect("kept"));
        let client = served.client(&forged, &key.serialize_pem());
        client.try_send(host.ask(json!([]))).await
    };
    let reply = push_with(vec![]).await.expect("an answer");
    assert_eq!(reply.refused(403), "certificate_required");
    assert!(push_with(vec![ServerAuth]).await.is_err(), "the handshake refuses it");
    assert!(push_with(vec![CodeSigning]).await.is_err(), "the handshake refuses it");
    let good = push_with(vec![ServerAuth, ClientAuth]).await.expect("an answer");
    assert_eq!(good.status, 200, "{good:?}");
}
