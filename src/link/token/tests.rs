use jsonwebtoken::{DecodingKey, Validation};

use super::*;

const SECRET: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).expect("in range")
}

fn minter() -> Minter {
    Minter::new(&SecretString::from(SECRET), "c-1", "db.example").expect("a good secret")
}

fn claims(token: &Token) -> Claims {
    let key: Vec<u8> = (0..32).collect();
    let mut validation = Validation::new(Algorithm::HS256);
    validation.validate_exp = false;
    let text = token.expose().expose_secret();
    let read = jsonwebtoken::decode::<Claims>(text, &DecodingKey::from_secret(&key), &validation)
        .expect("signed with the decoded secret");
    assert_eq!(read.header.alg, Algorithm::HS256);
    assert_eq!(read.header.kid.as_deref(), Some("c-1"));
    read.claims
}

/// C7: three parts of real base64url, signed, with the contract's claims.
#[test]
fn minted_token_has_the_contracts_claims() {
    let token = minter().token(at(0), None).expect("minted");
    let parts: Vec<&str> = token.expose().expose_secret().split('.').collect();
    assert_eq!(parts.len(), 3);
    for part in parts {
        URL_SAFE_NO_PAD.decode(part).expect("base64url without padding");
    }
    let claims = claims(&token);
    assert_eq!(claims.collector_id, "c-1");
    assert_eq!(claims.hostname, "db.example");
    assert_eq!(claims.kind, "access");
    assert_eq!(claims.sub, "collector:c-1");
    assert_eq!((claims.iat, claims.nbf), (1_700_000_000, 1_700_000_000));
    assert_eq!(claims.exp, 1_700_003_600);
    assert_eq!(token.expires_at(), at(3600));
}

/// C9, C10: 61 s before the end a token is used, 60 s and less before it is not.
#[test]
fn token_is_valid_until_a_minute_before_its_end() {
    let check = |left: i64, expected| {
        let token = Token::new(SecretString::from("t"), at(0));
        assert_eq!(token.is_valid(at(-left)), expected, "{left} s left");
    };
    check(3600, true);
    check(61, true);
    check(60, false);
    check(59, false);
    check(0, false);
    check(-1, false);
}

/// C8, C12: reused while valid, then replaced by one with a new id and a later end.
#[test]
fn token_is_reused_while_valid_and_then_replaced() {
    let mut minter = minter();
    let first = minter.token(at(0), None).expect("minted");
    let again = minter.token(at(3539), None).expect("kept");
    assert!(again.same_as(&first), "61 s before its end");
    let next = minter.token(at(3541), None).expect("minted");
    assert!(!next.same_as(&first));
    assert_ne!(claims(&next).jti, claims(&first).jti);
    assert!(next.expires_at() > first.expires_at());
}

/// C12, C33: a refused token is not used again, though it is valid; the new one ends later.
#[test]
fn refused_token_is_replaced_within_the_same_second() {
    let mut minter = minter();
    let first = minter.token(at(0), None).expect("minted");
    let second = minter.token(at(0), Some(&first)).expect("minted");
    assert!(!second.same_as(&first));
    assert!(second.expires_at() > first.expires_at());
    let kept = minter.token(at(0), Some(&first)).expect("kept");
    assert!(kept.same_as(&second), "another request had renewed it already");
}

#[test]
fn corrected_clock_gives_an_ordinary_lifetime() {
    let mut minter = minter();
    let wrong = minter.token(at(86_400 * 365), None).expect("minted");
    let right = minter.token(at(0), Some(&wrong)).expect("minted");
    assert_eq!(right.expires_at(), at(3600));
}

/// C13: a token from elsewhere is taken as it is. C10, C11: expired, garbage and refresh tokens
/// are not sent at all.
#[test]
fn external_token_is_checked_before_it_is_used() {
    let encode = |claims: &str| {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", part(r#"{"alg":"HS256"}"#), part(claims), part("signature"))
    };
    let check = |text: &str, expected: Result<i64, &str>| {
        let mut file = TokenFile::new(Path::new("/run/token"));
        match (file.token(text, at(0)), expected) {
            (Ok(token), Ok(end)) => assert_eq!(token.expires_at(), at(end), "{text}"),
            (Err(error), Err(part)) => {
                let error = error.to_string();
                assert!(error.starts_with("token_file /run/token: "), "{error}");
                assert!(error.contains(part) && error.contains("hint: "), "{text}: {error}");
            }
            (got, _) => panic!("{text}: {got:?}"),
        }
    };
    check(&encode(r#"{"exp":1700000100}"#), Ok(100));
    check(&format!("{}\n", encode(r#"{"exp":1700000100,"type":"access"}"#)), Ok(100));
    check(&encode(r#"{"exp":1700000000}"#), Err("expired at"));
    check(&encode(r#"{"exp":9999999999999999}"#), Err("expired at"));
    check(&encode(r#"{"exp":1700000100,"type":"refresh"}"#), Err("of type \"refresh\""));
    check(&encode(r#"{"sub":"x"}"#), Err("missing field `exp`"));
    check("", Err("three parts"));
    check("a.b", Err("three parts"));
    check("a.b.c.d", Err("three parts"));
    check("a+.b.c", Err("no base64url"));
    check("bm8.bm8.bm8", Err("claims"));
}

#[test]
fn last_external_token_bridges_a_half_written_file() {
    let token = minter().token(at(0), None).expect("minted");
    let mut file = TokenFile::new(Path::new("/run/token"));
    file.token(token.expose().expose_secret(), at(0)).expect("good");
    assert!(file.token("half", at(10)).expect("the last one").same_as(&token));
    assert!(file.token("half", at(3550)).is_err(), "the last one ends too soon");
}

#[test]
fn token_source_is_chosen_by_what_there_is() {
    let mut identity = Identity::new("c-1", "db.example");
    let error = TokenSource::choose(None, &identity).expect_err("nothing to use");
    assert!(error.to_string().contains("neither secret nor token"), "{error}");
    identity.token = Some(Token::new(SecretString::from("t"), at(0)));
    assert!(matches!(TokenSource::choose(None, &identity), Ok(TokenSource::Renewed(_))));
    identity.secret = Some(SecretString::from(SECRET));
    assert!(matches!(TokenSource::choose(None, &identity), Ok(TokenSource::Minted(_))));
    let file = Path::new("/run/token");
    assert!(matches!(TokenSource::choose(Some(file), &identity), Ok(TokenSource::File(_))));
    identity.secret = Some(SecretString::from("no base64url!"));
    let error = TokenSource::choose(None, &identity).expect_err("damaged secret");
    assert!(error.to_string().contains("no base64url; hint: "), "{error}");
}

#[test]
fn secrets_are_not_shown_by_debug() {
    let token = minter().token(at(0), None).expect("minted");
    let text = token.expose().expose_secret();
    assert!(!format!("{token:?} {:?}", minter()).contains(text));
    assert!(!format!("{:?}", minter()).contains(SECRET));
}

/// A pipe in the place of the file holds nobody: it is an error that names the file.
#[tokio::test]
async fn a_pipe_in_the_place_of_a_token_file_holds_nobody() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token");
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
    let mut file = TokenFile::new(&path);
    let read = tokio::time::timeout(std::time::Duration::from_secs(20), file.read(at(0))).await;
    if read.is_err() {
        // Whoever waits for a writer has one, and the test ends.
        drop(std::fs::OpenOptions::new().read(true).write(true).open(&path));
    }
    let error = read.expect("it ends").expect_err("a pipe").what;
    assert!(error.contains("token: it is not a file"), "{error}");
}
