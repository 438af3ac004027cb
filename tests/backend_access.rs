//! Who is refused, for how long, and how often that is said: tokens, certificates, storms.

use std::time::Duration;

use http::Method;
use pganalytics::backend::store::{Audit, Renewal, Role};
use pganalytics::clock;
use rcgen::ExtendedKeyUsagePurpose::{self, ClientAuth, CodeSigning, ServerAuth};
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::HandshakeKind;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;

use crate::support::backend::{Ask, Served};
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
    // With a session ticket of the time when it was good: the handshake of a resumed session does
    // not look at the certificate again.
    let (kind, reply) = host.client.send_resumed(host.ask(json!([]))).await.expect("an answer");
    assert_eq!(kind, HandshakeKind::Resumed);
    assert_eq!(reply.refused(403), "certificate_expired");
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

/// A client that tries again at once when it is refused is told to wait; a good token is never
/// held back, from the same address and the same collector.
#[tokio::test]
async fn a_storm_of_refusals_is_told_to_wait() {
    let served = Served::start().await;
    let (host, other) = (served.register("db1").await, served.register("db2").await);
    let bad = format!("{}A", host.token);
    let mut open = host.client.connect().await.expect("connect");
    let mut answers = Vec::new();
    for _ in 0..100 {
        let reply = host.ask(json!([])).bearer(&bad).over(&mut open).await.expect("an answer");
        if reply.status == 429 {
            let wait = reply.header("retry-after").parse::<u64>().expect("a number");
            assert!((1..=60).contains(&wait), "{wait}");
        }
        answers.push(reply.status);
    }
    assert!(answers.starts_with(&[401; 30]), "{answers:?}");
    assert!(answers[30..].iter().all(|status| *status == 429), "{answers:?}");
    assert_eq!(host.push(json!([])).await.status, 200);
    assert_eq!(other.push(json!([])).await.status, 200);
    // Another collector behind the same address is told what is wrong with its token.
    let bad = format!("{}A", other.token);
    let reply = other.client.send(other.ask(json!([])).bearer(&bad)).await;
    assert_eq!(reply.refused(401), "unauthorized");
}

/// `PUT` without a body is a client's mistake, not a configuration.
#[tokio::test]
async fn an_empty_configuration_is_refused() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let admin = served.user_token(Role::Admin).await;
    let path = format!("/api/v1/config/{}", host.id);
    let put = |body: &'static str| Ask::new(Method::PUT, &path).bearer(&admin).body(body);
    for body in ["", " \n\t\n"] {
        assert_eq!(served.stranger().send(put(body)).await.refused(400), "bad_request");
    }
    assert_eq!(served.stranger().send(put("# nothing")).await.status, 200);
    let kept = host.client.get(&path, &host.token).await;
    assert_eq!((kept.header("x-config-version"), &kept.body[..]), ("1", &b"# nothing"[..]));
}
