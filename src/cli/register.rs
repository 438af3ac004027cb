//! `agent register`: enrols this host with a backend.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use secrecy::SecretString;

use crate::cli::terminal;
use crate::clock;
use crate::link::endpoint::Endpoint;
use crate::link::register::{Contact, RegisterError, Registered, Registration, register};
use crate::link::tls::Fingerprint;
use crate::link::{Identity, LinkConfig};

/// Where the secret may come from besides a file and a prompt; never from the command line, which
/// every user of this host can read.
const SECRET_VARIABLE: &str = "PGANALYTICS_REGISTRATION_SECRET";

/// How `agent register` enrols.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The backend, instead of backend.url of the configuration.
    #[arg(long, value_name = "URL")]
    pub backend: Option<String>,

    /// The name of this collector in the backend [default: the host name].
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Read the registration secret from this file, `-` for standard input. Without it the
    /// variable `PGANALYTICS_REGISTRATION_SECRET` is used, else it is asked for.
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,

    /// Trust the CA certificates in this file for the backend.
    #[arg(long, value_name = "FILE", conflicts_with = "ca_fingerprint")]
    pub ca: Option<PathBuf>,

    /// Trust the CA with this fingerprint (openssl x509 -noout -fingerprint -sha256).
    #[arg(long, value_name = "SHA256")]
    pub ca_fingerprint: Option<String>,

    /// Register again: a host that has its certificate shows it and stays the collector that it is;
    /// one that has lost it needs the secret of `agent backend collector release NAME`.
    #[arg(long)]
    pub force: bool,
}

/// What `--secret-file` names.
#[derive(Debug)]
pub enum SecretFile {
    /// It is read when it is needed.
    StandardInput,
    /// A file, as it was read.
    Read(std::io::Result<String>),
}

impl Args {
    /// Reads the file of the secret, which its reader may be the only one to be allowed to.
    pub fn read_secret_file(&self) -> Option<SecretFile> {
        let path = self.secret_file.as_ref()?;
        Some(match path.as_os_str() {
            name if name == "-" => SecretFile::StandardInput,
            _ => SecretFile::Read(fs_err::read_to_string(path)),
        })
    }
}

/// What the configuration says about this host.
#[derive(Debug)]
pub struct Host {
    /// The configuration file, for the command that comes next.
    pub config_file: PathBuf,
    /// How to reach the backend.
    pub link: LinkConfig,
    /// Where the identity belongs.
    pub state_dir: PathBuf,
    /// The host's name.
    pub hostname: String,
}

/// Runs the command. Exit codes: 0 registered (now or before), 1 the backend said no or nothing,
/// 64 a setting or file of this host is wrong.
pub async fn run(args: Args, secret: Option<SecretFile>, host: Host) -> ExitCode {
    let next = format!(
        "next: agent run --config {}; an agent that runs already takes this at its next start",
        host.config_file.display()
    );
    match perform(args, secret, host).await {
        Ok(report) => {
            terminal::note(&format!("{report}\n{next}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            terminal::complain(&format!(
                "agent register: {}",
                error.to_string().replace("; hint: ", "\n  hint: ")
            ));
            ExitCode::from(exit_code(&error))
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref() {
        Some(RegisterError::Send(_) | RegisterError::Refused(_)) => 1,
        Some(RegisterError::Setup(_)) | None => 64,
    }
}

async fn perform(
    args: Args,
    secret_file: Option<SecretFile>,
    host: Host,
) -> anyhow::Result<String> {
    let mut link = host.link;
    if let Some(url) = args.backend {
        link.url = url;
    }
    let name = match args.name {
        Some(name) => name,
        None if is_everybodys(&host.hostname) => bail!(
            "this host calls itself {}, as every host does; hint: set collector.hostname to its \
             own name, or pass --name NAME",
            host.hostname
        ),
        None => host.hostname.clone(),
    };
    // With --force a damaged identity is replaced like any other.
    let before = if args.force { None } else { Identity::find(&host.state_dir)? };
    if let Some(identity) = before {
        return registered_before(&identity, &name, &link);
    }
    let contact = match (args.ca, args.ca_fingerprint) {
        (Some(file), _) => Contact::Ca(file),
        (None, Some(text)) => Contact::Fingerprint(text.parse::<Fingerprint>()?),
        (None, None) => Contact::Configured,
    };
    let can_show = link.tls.cert_file.exists() && link.tls.key_file.exists();
    let secret = secret(secret_file, can_show)?;
    let (state_dir, hostname) = (host.state_dir, host.hostname);
    let registration = Registration { link, state_dir, name, hostname, contact, secret };
    let registered = register(&registration).await?;
    Ok(report(&registered, &registration))
}

/// A name that says nothing about a host.
fn is_everybodys(hostname: &str) -> bool {
    hostname == "localhost" || hostname.starts_with("localhost.")
}

/// A second run changes nothing, so that it can stand in a script; other wishes need `--force`.
fn registered_before(identity: &Identity, name: &str, link: &LinkConfig) -> anyhow::Result<String> {
    let same_backend = Endpoint::parse(&link.url, link.allow_plaintext)
        .is_ok_and(|endpoint| endpoint.base() == identity.backend_url);
    let described = format!(
        "{:?} at {} as {} since {}",
        identity.name,
        identity.backend_url,
        identity.collector_id,
        clock::rfc3339(identity.registered_at)
    );
    if same_backend && identity.name == name {
        return Ok(format!("already registered: {described}"));
    }
    bail!(
        "this host is registered already: {described}; hint: --force registers it anew; the old \
         identity stays until the new one is complete"
    )
}

fn report(registered: &Registered, registration: &Registration) -> String {
    let identity = &registered.identity;
    let mut lines = vec![format!(
        "registered {:?} at {} as {}",
        identity.name, identity.backend_url, identity.collector_id
    )];
    lines.extend(registered.written.iter().map(|path| format!("  wrote {}", path.display())));
    if identity.name != registration.name {
        lines.push(format!("  the collector keeps its name, {:?}", identity.name));
    }
    if registered.is_key_from_backend {
        lines.push(
            "  ATTENTION: the backend made the private key and sent it; update the backend, so \
             that keys never leave their host"
                .to_owned(),
        );
    }
    if let Some(end) = identity.certificate_expires_at {
        lines.push(format!("  the certificate is valid until {}", clock::rfc3339(end)));
    }
    if registration.link.url.starts_with("https") {
        lines.push(format!("  the backend is trusted by {}", trusted_by(registered, registration)));
    }
    lines.join("\n")
}

fn trusted_by(registered: &Registered, registration: &Registration) -> String {
    let tls = &registration.link.tls;
    match tls.ca_file.as_ref().or(registered.identity.ca_file.as_ref()) {
        _ if !tls.verify => "anyone's word: tls.verify = false".to_owned(),
        Some(file) => format!("the CA in {}", file.display()),
        None => "the CA certificates of this system".to_owned(),
    }
}

/// The registration secret; a host that can show a certificate needs none.
fn secret(file: Option<SecretFile>, can_show: bool) -> anyhow::Result<Option<SecretString>> {
    let text = match file {
        Some(SecretFile::StandardInput) => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("standard input")?;
            text
        }
        Some(SecretFile::Read(text)) => text?,
        None => match std::env::var(SECRET_VARIABLE) {
            Ok(text) => text,
            Err(_) if can_show => return Ok(None),
            Err(_) if std::io::stdin().is_terminal() => {
                rpassword::prompt_password("registration secret: ").context("the prompt")?
            }
            Err(_) => bail!(
                "no registration secret; hint: pass --secret-file FILE, or - for standard input, \
                 or set {SECRET_VARIABLE}"
            ),
        },
    };
    let text = text.trim();
    if text.is_empty() {
        bail!("the registration secret is empty; hint: ask the backend's operator for it");
    }
    Ok(Some(SecretString::from(text)))
}
