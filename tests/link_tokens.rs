//! Tokens that the agent does not mint itself: of a backend that gives no secret, and of another
//! program of the host.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pganalytics::backend::BackendConfig;
use pganalytics::clock;
use pganalytics::link::token::Token;
use pganalytics::link::{Identity, Link, LinkConfig};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

use crate::link_renew::Site;
use crate::support::backend::Served;
use crate::support::{site, until};

/// A host whose backend gave it no secret.
fn without_secret(site: &Site) -> Identity {
    let mut identity = site.identity();
    identity.secret = None;
    identity.save().expect("saved");
    identity
}

fn link(site: &Site, identity: Identity) -> Link {
    Link::new(&site.config, identity).expect("a usable configuration")
}

/// The backend's token of a collector, as it gave it some time ago.
fn given(config: &BackendConfig, collector_id: &str, ends: Timestamp) -> Token {
    let key = fs_err::read_to_string(config.data_dir.join("keys/token.key")).expect("a key");
    let key = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, key.trim());
    let began = ends.as_second() - 1800;
    let claims = json!({
        "sub": format!("collector:{collector_id}"), "collector_id": collector_id,
        "hostname": "db1.example.com", "type": "access", "jti": "1",
        "iat": began, "nbf": began, "exp": ends.as_second(),
    });
    let key = jsonwebtoken::EncodingKey::from_secret(&key.expect("base64url"));
    let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
    let token = jsonwebtoken::encode(&header, &claims, &key).expect("a token");
    Token::new(SecretString::from(token), ends)
}

fn kept_token(site: &Site) -> Token {
    site.identity().token.expect("a token")
}

/// C9, C12: used while it is good, renewed a minute before its end, kept for the next start; one
/// that ended a month ago is enough, with the certificate.
#[tokio::test]
async fn a_token_of_the_backend_is_renewed_in_time_and_kept() {
    let site = Site::registered().await;
    let id = site.identity().collector_id;
    let pushes = async |ends: SignedDuration| {
        let mut identity = without_secret(&site);
        identity.token = Some(given(&site.served.config, &id, clock::now() + ends));
        identity.save().expect("saved");
        let before = kept_token(&site);
        let link = link(&site, identity);
        for _ in 0..3 {
            let answer = link.push(site.push()).await.expect("answered");
            assert_eq!(answer.status, 200, "{}", answer.message());
        }
        assert_eq!(link.token_expires_at(), Some(kept_token(&site).expires_at()));
        !kept_token(&site).same_as(&before)
    };
    assert!(!pushes(SignedDuration::from_secs(120)).await, "it is good for two minutes");
    assert!(pushes(SignedDuration::from_secs(50)).await, "it ends within the minute");
    let month = SignedDuration::from_hours(-30 * 24);
    assert!(pushes(month).await, "it ended a month ago");
    // The next start has the renewed one.
    let renewed = kept_token(&site);
    let left = renewed.expires_at().duration_since(clock::now()).as_mins();
    assert!((28..=30).contains(&left), "{left} min");
    let again = link(&site, site.identity());
    assert_eq!(again.push(site.push()).await.expect("answered").status, 200);
    assert!(kept_token(&site).same_as(&renewed));
}

/// C33: a backend whose key was replaced refuses token and renewal: its 401 is the answer, whether
/// the token is good still or has ended; once it is put right, the old token is enough.
#[tokio::test]
async fn a_backend_whose_token_key_was_replaced_is_refused_until_it_is_put_right() {
    let mut site = Site::registered().await;
    let key_file = site.served.config.data_dir.join("keys/token.key");
    let (right, id) = (fs_err::read(&key_file).expect("a key"), site.identity().collector_id);
    for minutes in [20, -20] {
        let mut identity = without_secret(&site);
        let ends = clock::now() + SignedDuration::from_mins(minutes);
        identity.token = Some(given(&site.served.config, &id, ends));
        let link = link(&site, identity);
        site.served.stop().await;
        fs_err::write(&key_file, format!("{}\n", "A".repeat(43))).expect("write");
        site.served.resume().await;
        for _ in 0..2 {
            let answer = link.push(site.push()).await.expect("answered");
            assert_eq!(answer.status, 401, "{}", answer.message());
        }
        site.served.stop().await;
        fs_err::write(&key_file, &right).expect("write");
        site.served.resume().await;
        let answer = link.push(site.push()).await.expect("answered");
        assert_eq!(answer.status, 200, "{}", answer.message());
    }
}

/// C13: another program replaces the token while the agent runs; what it does meanwhile, with the
/// file or without, costs nothing while the last token is good.
#[tokio::test]
async fn a_token_of_another_program_is_replaced_while_the_agent_runs() {
    let served = Served::start_with(|config| {
        config.lifetimes.collector_token = Duration::from_secs(1800);
    })
    .await;
    let site = Site::of(served).await;
    let id = site.identity().collector_id;
    let file = site.folder.path().join("token");
    let good = |minutes| {
        let ends = clock::now() + SignedDuration::from_mins(minutes);
        given(&site.served.config, &id, ends).expose().expose_secret().to_owned()
    };
    let replace = |text: &str| {
        let next = site.folder.path().join("token.next");
        fs_err::write(&next, text).expect("write");
        fs_err::rename(&next, &file).expect("rename");
    };
    let config = LinkConfig { token_file: Some(file.clone()), ..site.config.clone() };
    let link = Link::new(&config, site.identity()).expect("a usable configuration");
    let works = async |why: &str| {
        let answer = link.push(site.push()).await.expect(why);
        assert_eq!(answer.status, 200, "{why}: {}", answer.message());
    };
    replace(&good(10));
    works("the first").await;
    for unusable in ["", "half.a", &good(-10)] {
        replace(unusable);
        works("unusable text").await;
    }
    fs_err::remove_file(&file).expect("remove");
    works("no file").await;
    replace(&good(20));
    works("the second").await;
    assert_eq!(link.token_expires_at(), None, "it is not the agent's");
    // One that the backend refuses is its answer, until the program brings another.
    let forged = good(10);
    let (signed, _) = forged.rsplit_once('.').expect("three parts");
    replace(&format!("{signed}.{}", "A".repeat(43)));
    assert_eq!(link.push(site.push()).await.expect("answered").status, 401);
    replace(&good(15));
    works("the third").await;
}

/// C33: an agent whose token file holds nothing that the backend accepts pauses; it
/// delivers as soon as the file is replaced, without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_token_file_ends_the_pause_at_once() {
    let site = site::Site::registered().await;
    let state = site.directory.path().join("state/identity.json");
    let text = fs_err::read_to_string(state).expect("an identity");
    let identity: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let id = identity["collector_id"].as_str().expect("an id");
    let ends = clock::now() + SignedDuration::from_mins(20);
    let good = given(&site.served.config, id, ends).expose().expose_secret().to_owned();
    let (signed, _) = good.rsplit_once('.').expect("three parts");
    let forged = format!("{signed}.{}", "A".repeat(43));
    let file = site.directory.path().join("token");
    let replace = |text: &str| {
        let next = site.directory.path().join("token.next");
        fs_err::write(&next, text).expect("write");
        fs_err::rename(&next, &file).expect("rename");
    };
    let config = fs_err::read_to_string(site.config()).expect("read");
    let named = format!("[backend]\ntoken_file = \"{}\"", file.display());
    let config = config.replace("[backend]", &named);
    let config = config.replace("backoff_first = \"50ms\"", "backoff_first = \"1h\"");
    let config = config.replace("backoff_max = \"200ms\"", "backoff_max = \"1d\"");
    fs_err::write(site.config(), config).expect("write");
    // A token that is refused, and one that is none: the agent waits for a person, or backs off.
    for (unusable, state) in [(forged.as_str(), "paused"), ("half.a", "backing_off")] {
        replace(unusable);
        let agent = site.run();
        let status = || {
            let shown = site.command(&["status", "--json"]).stdout;
            serde_json::from_str::<serde_json::Value>(&shown).expect("JSON")["backend"].clone()
        };
        let limit = Duration::from_secs(60);
        let mut next_try = Timestamp::MIN;
        until("the next try is far away", limit, || {
            let backend = status();
            let next = backend["next_try_at"].as_str().and_then(|at| at.parse().ok());
            next_try = next.unwrap_or(Timestamp::MIN);
            let away = next_try.duration_since(clock::now()).as_secs();
            backend["forwarding"] == state && away > 20
        });
        let before = site.stored().await.len();
        replace(&good);
        site.until_stored(before + 1).await;
        assert!(clock::now() < next_try, "it has waited for the end of the pause");
        until("it flows", limit, || status()["forwarding"] == "flowing");
        agent.stop();
    }
}

/// C33: such an agent is paused and says so, keeps everything, and delivers it by itself when the
/// backend is put right.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_agent_says_so_and_recovers() {
    let mut site = site::Site::registered().await;
    let identity = site.directory.path().join("state/identity.json");
    let text = fs_err::read_to_string(&identity).expect("an identity");
    let mut kept: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    kept.as_object_mut().expect("an object").remove("secret").expect("a secret");
    fs_err::write(&identity, kept.to_string()).expect("write");
    let agent = site.run();
    site.until_stored(3).await;
    let key_file = site.served.config.data_dir.join("keys/token.key");
    let right = fs_err::read(&key_file).expect("a key");
    site.served.stop().await;
    fs_err::write(&key_file, format!("{}\n", "A".repeat(43))).expect("write");
    site.served.resume().await;
    let status = || {
        let done = site.command(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&done.stdout).expect("JSON");
        (done.code, status["backend"].clone())
    };
    let limit = Duration::from_secs(30);
    until("it is paused", limit, || status().1["forwarding"] == "paused");
    let (code, backend) = status();
    assert_eq!(code, Some(2));
    assert!(backend["last_answer"].as_str().expect("one").starts_with("401"), "{backend}");
    assert!(backend["token_expires_at"].is_string(), "{backend}");
    until("records wait", limit, || site.queue_number("records") > 3);
    let before = site.stored().await.len();
    site.served.stop().await;
    fs_err::write(&key_file, &right).expect("write");
    site.served.resume().await;
    site.until_stored(before + 4).await;
    let status = || site.command(&["status", "--json"]).stdout;
    until("it flows", limit, || status().contains("\"forwarding\": \"flowing\""));
    site::assert_distinct(&site.stored().await);
    agent.stop();
}
