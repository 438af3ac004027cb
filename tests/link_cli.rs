//! `agent register`: what it does with its arguments, and its exit codes.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use pganalytics::cli::register::{Args, Host, run};
use pganalytics::link::tls::Fingerprint;
use pganalytics::link::{Identity, TlsConfig};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::backend_stub::{Authority, Clients, Flaw, Recorded, Reply, Stub};
use crate::support::directory;
use crate::support::port::Port;

const FIRST: &str = "0b0e8f4c-0000-4000-8000-000000000001";
const SECOND: &str = "0b0e8f4c-0000-4000-8000-000000000002";

/// A backend that gives every registration a new collector id.
struct World {
    authority: Arc<Authority>,
    stub: Stub,
    folder: TempDir,
}

impl World {
    async fn new() -> Self {
        let authority = Arc::new(Authority::new("test CA"));
        let stub = Stub::https(&authority.server(Flaw::None), Clients::Anyone).await;
        let folder = directory();
        std::fs::write(folder.path().join("secret"), "the secret\n").expect("write");
        Self { authority, stub, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn accepts(&self, id: &str) {
        let (authority, id) = (Arc::clone(&self.authority), id.to_owned());
        self.stub.reply([Reply::Made(Arc::new(move |request: &Recorded| {
            let sent: Value = serde_json::from_slice(&request.body).expect("JSON");
            let certificate = authority.sign(sent["csr"].as_str().expect("a request"));
            let secret = crate::link_tls::SECRET;
            let answer = json!({
                "collector_id": id, "certificate": certificate, "secret": secret,
                "ca_certificate": authority.pem(),
            });
            (200, Bytes::from(answer.to_string()))
        }))]);
    }

    async fn run(&self, change: impl FnOnce(&mut Args)) -> u8 {
        let mut args = Args {
            backend: Some(self.stub.url()),
            name: None,
            secret_file: Some(self.path("secret")),
            ca: None,
            ca_fingerprint: Some(Fingerprint::of(&self.authority.der()).to_string()),
            force: false,
        };
        change(&mut args);
        let tls = TlsConfig {
            cert_file: self.path("collector.crt"),
            key_file: self.path("collector.key"),
            ..TlsConfig::default()
        };
        let host = Host {
            config_file: self.path("agent.toml"),
            link: self.stub.link_config(tls),
            state_dir: self.path("state"),
            hostname: "db.example".to_owned(),
        };
        let secret = args.read_secret_file();
        let code = run(args, secret, host).await;
        (0..=u8::MAX)
            .find(|n| format!("{:?}", ExitCode::from(*n)) == format!("{code:?}"))
            .expect("a code")
    }

    fn id(&self) -> String {
        Identity::load(&self.path("state")).expect("an identity").collector_id
    }
}

#[tokio::test]
async fn second_run_changes_nothing_unless_forced() {
    let world = World::new().await;
    world.accepts(FIRST);
    assert_eq!(world.run(|_| ()).await, 0);
    assert_eq!(world.stub.requests()[0].header("x-registration-secret"), "the secret");
    assert_eq!(world.id(), FIRST);

    assert_eq!(world.run(|_| ()).await, 0);
    assert_eq!(world.run(|args| args.name = Some("other".to_owned())).await, 64);
    let elsewhere = "https://127.0.0.1:1".to_owned();
    assert_eq!(world.run(|args| args.backend = Some(elsewhere)).await, 64);
    assert_eq!(world.stub.requests().len(), 1);

    world.accepts(SECOND);
    assert_eq!(world.run(|args| args.force = true).await, 0);
    assert_eq!(world.id(), SECOND);
}

#[tokio::test]
async fn exit_code_tells_this_hosts_mistakes_from_the_backends_no() {
    let world = World::new().await;
    world.stub.reply([Reply::status(401)]);
    assert_eq!(world.run(|_| ()).await, 1);
    let free = Port::reserve();
    let nobody = format!("https://{}", free.address());
    assert_eq!(world.run(|args| args.backend = Some(nobody.clone())).await, 1);
    assert_eq!(world.run(|args| args.backend = Some("localhost".to_owned())).await, 64);
    assert_eq!(world.run(|args| args.ca_fingerprint = Some("ab:cd".to_owned())).await, 64);
    let missing = Path::new("/nonexistent/secret");
    assert_eq!(world.run(|args| args.secret_file = Some(missing.to_owned())).await, 64);
    let ca = |args: &mut Args| {
        args.ca_fingerprint = None;
        args.ca = Some(PathBuf::from("/nonexistent/ca.crt"));
    };
    assert_eq!(world.run(ca).await, 64);
    std::fs::write(world.path("secret"), "\n").expect("write");
    assert_eq!(world.run(|_| ()).await, 64);
    assert_eq!(world.stub.requests().len(), 1);
}
