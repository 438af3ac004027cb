//! Users of the backend: login, refresh, logout, roles, and how they are added.

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use http::Method;
use pganalytics::backend::store::{Page, Role};
use pganalytics::backend::{self, UserRequest};
use pganalytics::clock;
use serde_json::{Value, json};

use crate::support::backend::{Ask, PASSWORD, Reply, Served};
use crate::support::process::agent;

async fn served() -> Served {
    Served::start_with(|config| config.limits.attempts_per_minute = 1000).await
}

async fn refresh(served: &Served, token: &Value) -> Reply {
    let body = json!({"refresh_token": token});
    served.stranger().send(Ask::post("/api/v1/auth/refresh").json(&body)).await
}

async fn status(served: &Served, token: &Value) -> u16 {
    served.stranger().get("/api/v1/collectors", token.as_str().expect("a token")).await.status
}

/// C53: what a login answers, and that its token opens the API.
#[tokio::test]
async fn a_login_gives_tokens_and_the_user() {
    let served = served().await;
    served.add_user("ann", Role::User).await;
    let answer = served.login("ann").await;
    let user = &answer["user"];
    assert_eq!((&user["username"], &user["role"]), (&json!("ann"), &json!("user")));
    assert_eq!((&user["email"], &user["is_active"]), (&json!("ann@example.com"), &json!(true)));
    assert_eq!((user.get("full_name"), user.get("password_hash")), (None, None));
    for time in ["last_login", "created_at", "updated_at"] {
        let text = user[time].as_str().unwrap_or_else(|| panic!("{time}: {user}"));
        assert!(text.ends_with('Z') && text.parse::<jiff::Timestamp>().is_ok(), "{text}");
    }
    let ends: jiff::Timestamp = answer["expires_at"].as_str().expect("a time").parse().expect("it");
    let left = ends.duration_since(clock::now()).as_secs();
    assert!((890..=900).contains(&left), "{left}");
    assert_eq!(status(&served, &answer["token"]).await, 200);
    // C11: a refresh token opens nothing.
    assert_eq!(status(&served, &answer["refresh_token"]).await, 401);
}

/// C53: a wrong password, an unknown user and one that is shut out are told the same.
#[tokio::test]
async fn failed_logins_say_nothing_about_the_user() {
    let served = served().await;
    served.add_user("ann", Role::User).await;
    served.add_user("gone", Role::User).await;
    let gone = served.login("gone").await;
    backend::disable_user(&served.config, "gone").await.expect("shut out");
    let mut bodies = Vec::new();
    for (username, password) in
        [("ann", "wrong password"), ("nobody", PASSWORD), ("gone", PASSWORD), ("ann\0", PASSWORD)]
    {
        let reply = served.try_login(username, password).await;
        assert_eq!(reply.refused(401), "bad_credentials");
        bodies.push(reply.body);
    }
    assert!(bodies.windows(2).all(|pair| pair[0] == pair[1]), "{bodies:?}");
    assert_eq!(status(&served, &gone["token"]).await, 401);
    refresh(&served, &gone["refresh_token"]).await.refused(401);
    let audits = served.running().store().audits(Page::first(1)).await.expect("audits");
    assert_eq!(audits.rows[0].action, "user.login_failed");
    for wrong in [json!({}), json!({"username": "ann"}), json!({"username": 1, "password": 2})] {
        let ask = Ask::post("/api/v1/auth/login").json(&wrong);
        served.stranger().send(ask).await.refused(400);
    }
}

/// An unknown user takes as long as a wrong password.
#[tokio::test]
async fn failed_logins_take_the_same_time() {
    let served = served().await;
    served.add_user("ann", Role::User).await;
    let time = async |username: &str| {
        let began = clock::monotonic();
        served.try_login(username, "wrong password").await.refused(401);
        clock::monotonic() - began
    };
    let (mut known, mut unknown) = (Duration::MAX, Duration::MAX);
    for _ in 0..8 {
        known = known.min(time("ann").await);
        unknown = unknown.min(time("nobody").await);
    }
    // Without a password to check a login is a hundred times as fast.
    assert!(known < unknown * 4 && unknown < known * 4, "{known:?} {unknown:?}");
}

/// C53: a refresh token is good once; presenting it again ends the whole session.
#[tokio::test]
async fn a_used_refresh_token_ends_the_session() {
    let served = served().await;
    served.add_user("ann", Role::User).await;
    let (first, other) = (served.login("ann").await, served.login("ann").await);
    let second = refresh(&served, &first["refresh_token"]).await;
    assert_eq!(second.status, 200, "{second:?}");
    let second = second.json();
    assert_ne!(second["token"], first["token"]);
    assert_eq!(second["user"]["username"], "ann");
    assert_eq!(status(&served, &second["token"]).await, 200);
    refresh(&served, &first["refresh_token"]).await.refused(401);
    refresh(&served, &second["refresh_token"]).await.refused(401);
    assert_eq!(status(&served, &second["token"]).await, 401);
    // Another login of the same user is another session.
    assert_eq!(status(&served, &other["token"]).await, 200);
    for token in [&json!("x.y.z"), &other["token"], &json!("")] {
        refresh(&served, token).await.refused(401);
    }
    let ask = Ask::post("/api/v1/auth/refresh").json(&json!({"refresh_token": 5}));
    served.stranger().send(ask).await.refused(400);
}

/// C53: after a logout neither token is good.
#[tokio::test]
async fn a_logout_ends_both_tokens() {
    let served = served().await;
    served.add_user("ann", Role::User).await;
    let answer = served.login("ann").await;
    let logout = || {
        let token = answer["token"].as_str().expect("a token");
        Ask::post("/api/v1/auth/logout").bearer(token)
    };
    let reply = served.stranger().send(logout()).await;
    assert_eq!((reply.status, reply.json()["message"].is_string()), (200, true));
    assert_eq!(status(&served, &answer["token"]).await, 401);
    refresh(&served, &answer["refresh_token"]).await.refused(401);
    served.stranger().send(logout()).await.refused(401);
}

/// Logins from one address are counted.
#[tokio::test]
async fn logins_are_limited() {
    let served = Served::start_with(|config| config.limits.attempts_per_minute = 2).await;
    served.add_user("ann", Role::User).await;
    served.try_login("ann", "wrong password").await.refused(401);
    served.try_login("ann", "wrong password").await.refused(401);
    let reply = served.try_login("ann", PASSWORD).await;
    assert_eq!(reply.refused(429), "too_many_requests");
    assert!(reply.header("retry-after").parse::<u64>().is_ok_and(|wait| wait <= 60));
}

/// Neither an address nor an attacked account locks the others out; a good login costs nothing.
#[tokio::test]
async fn a_guesser_locks_out_nobody_else() {
    let served = Served::start_with(|config| config.limits.attempts_per_minute = 3).await;
    for name in ["ann", "bob", "cat"] {
        served.add_user(name, Role::User).await;
    }
    let login = async |from: &str, name: &str, password: &str| {
        let from = from.parse().expect("an address");
        let body = json!({"username": name, "password": password});
        let client = served.stranger().from(from);
        client.send(Ask::post("/api/v1/auth/login").json(&body)).await.status
    };
    for _ in 0..4 {
        assert_eq!(login("127.0.0.1", "ann", PASSWORD).await, 200);
    }
    // From three addresses at one account: the account is closed to strangers.
    for from in ["127.0.0.2", "127.0.0.3", "127.0.0.4"] {
        assert_eq!(login(from, "ann", "wrong password").await, 401);
    }
    assert_eq!(login("127.0.0.5", "ann", "wrong password").await, 429);
    assert_eq!(login("127.0.0.5", "bob", PASSWORD).await, 200);
    // Where its owner was before, it is open.
    assert_eq!(login("127.0.0.1", "ann", PASSWORD).await, 200);
    // From one address at many accounts: the address is closed, the accounts are not.
    for name in ["bob", "cat", "nobody"] {
        assert_eq!(login("127.0.0.9", name, "wrong password").await, 401);
    }
    assert_eq!(login("127.0.0.9", "cat", PASSWORD).await, 429);
    assert_eq!(login("127.0.0.10", "cat", PASSWORD).await, 200);
}

/// Users are added by hand, once, with a password that is worth the name.
#[tokio::test]
async fn users_are_added_by_hand() {
    let served = served().await;
    let add = async |username: &str, password: &str| {
        let request = UserRequest {
            username: username.to_owned(),
            email: String::new(),
            full_name: None,
            role: Role::Viewer,
            password: password.into(),
        };
        backend::add_user(&served.config, request).await.map_err(|err| err.to_string())
    };
    assert_eq!(add("ann", PASSWORD).await, Ok(()));
    assert_eq!(add("ann", PASSWORD).await, Err("the user ann exists".to_owned()));
    assert!(add("bob", "short").await.is_err());
    assert!(add("", PASSWORD).await.is_err());
    assert!(add("a\nb", PASSWORD).await.is_err());
    assert!(backend::disable_user(&served.config, "nobody").await.is_err());
}

/// The command reads the password from standard input, and its user can log in at once.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_adds_and_shuts_out_users() {
    let served = served().await;
    let file = served.directory.path().join("backend.toml");
    let text = format!("[backend]\ndata_dir = \"{}\"\n", served.config.data_dir.display());
    std::fs::write(&file, text).expect("write");
    let file = file.to_str().expect("UTF-8").to_owned();
    let run = async |words: &[&str], input: &str| {
        let mut command = agent(words.iter().copied().chain(["--config", &file]));
        let input = input.to_owned();
        let work = move || {
            let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = pipes.spawn().expect("start");
            child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("write");
            child.wait_with_output().expect("run")
        };
        let output = tokio::task::spawn_blocking(work).await.expect("no panic");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code(), text)
    };
    let line = format!("{PASSWORD}\n");
    let (code, text) = run(&["backend", "user", "add", "ann", "--role", "admin"], &line).await;
    assert_eq!((code, text.as_str()), (Some(0), "added the user ann with the role admin\n"));
    assert_eq!(served.login("ann").await["user"]["role"], "admin");
    let (code, text) = run(&["backend", "user", "add", "ann"], &line).await;
    assert_eq!((code, text.as_str()), (Some(1), "agent backend: the user ann exists\n"));
    let (code, text) = run(&["backend", "user", "add", "bob"], "short\n").await;
    assert_eq!(code, Some(64), "{text}");
    let (code, text) = run(&["backend", "user", "disable", "ann"], "").await;
    assert_eq!(code, Some(0), "{text}");
    served.try_login("ann", PASSWORD).await.refused(401);
}

/// The API's rows of the table in `docs/SECURITY.md`: what each kind of caller is answered.
#[tokio::test]
async fn each_role_reads_and_changes_what_is_its_own() {
    let served = served().await;
    let host = served.register("db1").await;
    assert_eq!(host.push(json!([])).await.status, 200);
    let other = served.register("db2").await;
    let mut tokens = Vec::new();
    for role in [Role::Viewer, Role::User, Role::Admin] {
        tokens.push(served.user_token(role).await);
    }
    let own = |path: &str| format!("{path}/{}", host.id);
    let release = format!("{}/release", own("/api/v1/collectors"));
    let versions = format!("{}/versions", own("/api/v1/config"));
    // Who asks: nobody, the collector itself, another collector, viewer, user, admin.
    let open = [200, 200, 200, 200, 200, 200];
    let users = [401, 401, 401, 200, 200, 200];
    let admins = |done: u16| [401, 401, 401, 403, 403, done];
    for (method, path, body, expected) in [
        (Method::GET, "/version", "", open),
        (Method::GET, "/api/v1/health", "", open),
        (Method::GET, "/api/v1/collectors", "", users),
        (Method::GET, &own("/api/v1/collectors"), "", users),
        (Method::GET, "/api/v1/servers", "", users),
        (Method::GET, "/api/v1/servers/1", "", users),
        (Method::GET, "/api/v1/servers/1/metrics", "", users),
        (Method::GET, &own("/api/v1/config"), "", [401, 200, 403, 200, 200, 200]),
        (Method::GET, &versions, "", users),
        (Method::PUT, &own("/api/v1/config"), "[sysstat]\ninterval = 60\n", admins(200)),
        (Method::PATCH, &own("/api/v1/collectors"), "{}", admins(200)),
        (Method::POST, &release, "", admins(200)),
        (Method::GET, "/metrics", "", [404; 6]),
        (Method::DELETE, &own("/api/v1/collectors"), "", admins(204)),
    ] {
        let ask = || Ask::new(method.clone(), path).body(body.to_owned());
        let mut answers = vec![served.stranger().send(ask()).await.status];
        for collector in [&host, &other] {
            let ask = ask().bearer(&collector.token);
            answers.push(collector.client.send(ask).await.status);
        }
        for token in &tokens {
            answers.push(served.stranger().send(ask().bearer(token)).await.status);
        }
        assert_eq!(answers, expected, "{method} {path}");
    }
}

/// Who tries refresh tokens is held back as who tries passwords is; good ones cost nothing.
#[tokio::test]
async fn refreshes_are_limited_like_logins() {
    let served = Served::start_with(|config| config.limits.attempts_per_minute = 5).await;
    served.add_user("ann", Role::User).await;
    let mut answer = served.login("ann").await;
    for _ in 0..7 {
        let reply = refresh(&served, &answer["refresh_token"]).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        answer = reply.json();
    }
    for _ in 0..5 {
        assert_eq!(refresh(&served, &json!("x.y.z")).await.refused(401), "unauthorized");
    }
    let reply = refresh(&served, &answer["refresh_token"]).await;
    assert_eq!(reply.refused(429), "too_many_requests");
    assert!(!reply.header("retry-after").is_empty());
}

/// Where an object is expected, an array with its values in order is none.
#[tokio::test]
async fn arrays_are_no_objects() {
    let served = served().await;
    served.add_user("ann", Role::Admin).await;
    let token = served.login("ann").await["token"].as_str().expect("a token").to_owned();
    let host = served.register("db1").await;
    let collector = format!("/api/v1/collectors/{}", host.id);
    let secret = served.secret();
    for (method, path, body) in [
        (Method::POST, "/api/v1/auth/login", json!(["ann", PASSWORD])),
        (Method::POST, "/api/v1/auth/refresh", json!(["x"])),
        (Method::POST, "/api/v1/collectors/register", json!(["db2", "db2", null, null, null])),
        (Method::PATCH, collector.as_str(), json!(["db3", null])),
        (Method::PATCH, collector.as_str(), json!([null, {"a": "b"}])),
    ] {
        let ask = Ask::new(method, path).json(&body).bearer(&token);
        let ask = ask.header("x-registration-secret", &secret);
        assert_eq!(served.stranger().send(ask).await.refused(400), "bad_request", "{path} {body}");
    }
}

/// The backend raises no alerts, and says so to users.
#[tokio::test]
async fn there_are_no_alerts() {
    let served = served().await;
    let token = served.user_token(Role::Viewer).await;
    let user = served.stranger();
    let list = user.get("/api/v1/alerts?severity=warning&page_size=5", &token).await;
    let expected = json!({"data": [], "total": 0, "page": 1, "page_size": 5, "total_pages": 0});
    assert_eq!(list.json(), expected);
    user.get("/api/v1/alerts?severity=odd", &token).await.refused(400);
    user.get("/api/v1/alerts", "x").await.refused(401);
    assert_eq!(user.get("/api/v1/alerts/1", &token).await.refused(404), "not_found");
    let ask = Ask::post("/api/v1/alerts/1/acknowledge").json(&json!({})).bearer(&token);
    assert_eq!(user.send(ask).await.refused(404), "not_found");
}
