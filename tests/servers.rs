//! The test servers themselves: a suite that could not start them would prove nothing.

use crate::support::postgres::{Postgres, majors};

#[tokio::test]
async fn every_major_starts_and_answers() {
    assert_eq!(majors(), (10..=18).collect::<Vec<_>>());
    for major in majors() {
        let server = Postgres::start(major);
        let rows = server.query("postgres", "show server_version_num").await;
        let version: u32 = rows[0].get::<_, &str>(0).parse().expect("a number");
        assert_eq!(version / 10_000, major);
        assert!(server.log_file().exists(), "{}", server.log_file().display());
    }
}

#[tokio::test]
async fn stopped_server_comes_back_with_its_data_and_leaves_nothing() {
    let mut server = Postgres::start_with(15, &[("fsync", "on")]);
    server.execute("postgres", "create table kept as select 42 as n").await;
    server.stop();
    assert!(
        tokio_postgres::connect(&server.connection("postgres"), tokio_postgres::NoTls)
            .await
            .is_err()
    );
    server.resume();
    let rows = server.query("postgres", "select n from kept").await;
    assert_eq!(rows[0].get::<_, i32>(0), 42);

    let (pid, directory) = (server.pid(), server.socket_dir().to_owned());
    drop(server);
    assert!(!directory.exists(), "{} is left", directory.display());
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "server {pid} is left");
}
