use super::*;
use crate::backend::store::Role;
use jiff::ToSpan as _;

const HALF_HOUR: Duration = Duration::from_secs(1800);

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().expect("a time")
}

fn id() -> Uuid {
    Uuid::from_u128(7)
}

fn user() -> User {
    User {
        id: 3,
        username: "ann".into(),
        email: String::new(),
        full_name: None,
        role: Role::Admin,
        is_active: true,
        last_login: None,
        created_at: now(),
        updated_at: now(),
    }
}

/// C7, C12: three parts, base64url without padding, a new token every time.
#[test]
fn a_token_has_three_parts_and_is_never_the_same() {
    let key = TokenKey::new(&[1; 32]);
    let one = key.mint_collector(id(), "db1", now(), HALF_HOUR);
    let two = key.mint_collector(id(), "db1", now(), HALF_HOUR);
    assert_ne!(one.token, two.token);
    let parts: Vec<&str> = one.token.split('.').collect();
    assert_eq!(parts.len(), 3);
    assert!(parts.iter().all(|part| super::super::decode(part).is_some()), "{}", one.token);
}

/// C10, C11: a token is good for its life and the leeway, before and after.
#[test]
fn a_token_is_good_for_its_life_and_sixty_seconds() {
    let key = TokenKey::new(&[1; 32]);
    let minted = key.mint_collector(id(), "db1", now(), HALF_HOUR);
    let good = Ok(Subject::Collector(id()));
    let check = |seconds: i64, expected: Result<Subject, Refusal>| {
        let at = now() + seconds.seconds();
        let read = key.verify(&minted.token, at, Expiry::Checked);
        assert_eq!(read, expected, "after {seconds} s");
    };
    check(-61, Err(Refusal::Early));
    check(-60, good);
    check(0, good);
    check(1859, good);
    check(1860, Err(Refusal::Expired));
    let late = key.verify(&minted.token, now() + 1000.hours(), Expiry::Ignored);
    assert_eq!(late, good);
}

/// C11: what another key signed, what is no token, and what was changed.
#[test]
fn only_this_keys_own_tokens_pass() {
    let (key, other) = (TokenKey::new(&[1; 32]), TokenKey::new(&[2; 32]));
    let good = key.mint_collector(id(), "db1", now(), HALF_HOUR).token;
    let foreign = other.mint_collector(id(), "db1", now(), HALF_HOUR).token;
    let (head, rest) = good.split_once('.').expect("parts");
    let (claims, signature) = rest.split_once('.').expect("parts");
    let none = super::super::encode(br#"{"alg":"none","typ":"JWT"}"#);
    let hs512 = super::super::encode(br#"{"alg":"HS512","typ":"JWT"}"#);
    let bad = [
        foreign,
        String::new(),
        "a.b.c".into(),
        format!("{none}.{claims}."),
        format!("{none}.{claims}.{signature}"),
        format!("{hs512}.{claims}.{signature}"),
        format!("{head}.{claims}."),
        format!("{head}.{claims}A.{signature}"),
        format!("{good}="),
    ];
    for token in bad {
        let refused = Err(Refusal::Forged);
        assert_eq!(key.verify(&token, now(), Expiry::Checked), refused, "{token}");
    }
}

/// C11: users and collectors, access and refresh do not pass for each other.
#[test]
fn every_token_stands_for_its_own_subject() {
    let key = TokenKey::new(&[1; 32]);
    let session = Uuid::from_u128(9);
    let mint = |kind| key.mint_user(&user(), session, kind, now(), HALF_HOUR).token;
    let check = |token: &str, expected| {
        assert_eq!(key.verify(token, now(), Expiry::Checked), Ok(expected));
    };
    check(&mint(UserToken::Access), Subject::UserAccess(session));
    check(&mint(UserToken::Refresh(id())), Subject::UserRefresh { session, id: id() });
    let access = mint(UserToken::Access);
    let as_collector = verify_collector(&access, id(), &[1; 32], now(), Expiry::Checked);
    assert_eq!(as_collector, Err(Refusal::Claims));
}

/// A subject whose claims disagree is nobody.
#[test]
fn claims_that_disagree_are_refused() {
    let key = TokenKey::new(&[1; 32]);
    let mint = |claims| key.mint(now(), HALF_HOUR, claims).token;
    let collector = || Claims {
        sub: format!("collector:{}", id()),
        r#type: "access".into(),
        collector_id: Some(id()),
        ..Claims::default()
    };
    let verify = |claims| key.verify(&mint(claims), now(), Expiry::Checked);
    assert_eq!(verify(collector()), Ok(Subject::Collector(id())));
    let other = Some(Uuid::from_u128(8));
    assert_eq!(verify(Claims { collector_id: other, ..collector() }), Err(Refusal::Claims));
    assert_eq!(verify(Claims { sub: "user:3".into(), ..collector() }), Err(Refusal::Claims));
    assert_eq!(verify(Claims { r#type: "refresh".into(), ..collector() }), Err(Refusal::Claims));
    assert_eq!(verify(Claims { user_id: Some(3), ..collector() }), Err(Refusal::Claims));
    assert_eq!(verify(Claims { collector_id: None, ..collector() }), Err(Refusal::Claims));
}

/// A collector's own secret makes tokens for that collector only.
#[test]
fn a_collectors_secret_is_good_for_itself() {
    let own = TokenKey::new(&[5; 32]);
    let token = own.mint_collector(id(), "db1", now(), HALF_HOUR).token;
    let verify = |id, secret: &[u8]| verify_collector(&token, id, secret, now(), Expiry::Checked);
    assert_eq!(verify(id(), &[5; 32]), Ok(()));
    assert_eq!(verify(id(), &[6; 32]), Err(Refusal::Forged));
    assert_eq!(verify(Uuid::from_u128(8), &[5; 32]), Err(Refusal::Claims));
    assert_eq!((key_id(&token), claimed_collector(&token)), (None, Some(id())));
    for odd in ["", "a.b.c", "a.e30.c"] {
        assert_eq!(claimed_collector(odd), None, "{odd}");
    }
}

/// Whatever its end says: a collector's token of more than two hours is refused, also by the one
/// endpoint that takes expired ones.
#[test]
fn a_collectors_token_lives_two_hours_at_most() {
    let key = TokenKey::new(&[5; 32]);
    let check = |iat: i64, exp: i64, expected: Result<(), Refusal>| {
        let claims = Claims {
            sub: format!("collector:{}", id()),
            r#type: "access".into(),
            collector_id: Some(id()),
            iat,
            nbf: iat,
            exp,
            ..Claims::default()
        };
        let token = encode(&Header::new(Algorithm::HS256), &claims, &key.encoding).expect("it");
        for expiry in [Expiry::Checked, Expiry::Ignored] {
            let read = verify_collector(&token, id(), &[5; 32], now(), expiry);
            assert_eq!(read, expected, "{iat} to {exp}");
        }
    };
    let second = now().as_second();
    check(second, second + 3600, Ok(()));
    check(second, second + 7200, Ok(()));
    check(second, second + 7201, Err(Refusal::TooLong));
    check(second, i64::MAX, Err(Refusal::TooLong));
    check(i64::MIN, second + 60, Err(Refusal::TooLong));
    check(second + 60, second + 7260, Ok(()));
    check(second + 61, second + 70, Err(Refusal::Early));
}

/// What a header says must be understood is not understood here, whatever it is.
#[test]
fn a_header_with_crit_is_refused() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    let key = [1; 32];
    let issued = now().as_second();
    let claims = serde_json::json!({
        "sub": "user:3", "iat": issued, "nbf": issued, "exp": issued + 60, "user_id": 3,
        "jti": id(), "type": "access", "sid": id(),
    });
    let read = |header: &str| {
        let signed = [header, &claims.to_string()].map(|part| URL_SAFE_NO_PAD.encode(part));
        let signed = signed.join(".");
        let hmac = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
        let signature = URL_SAFE_NO_PAD.encode(ring::hmac::sign(&hmac, signed.as_bytes()));
        TokenKey::new(&key).verify(&format!("{signed}.{signature}"), now(), Expiry::Checked)
    };
    assert_eq!(read(r#"{"alg":"HS256","typ":"JWT"}"#), Ok(Subject::UserAccess(id())));
    for crit in [r#"["exp"]"#, r#"["b64"]"#, "[]", "null", "5"] {
        let header = format!(r#"{{"alg":"HS256","crit":{crit}}}"#);
        assert_eq!(read(&header), Err(Refusal::Forged), "{crit}");
    }
}
