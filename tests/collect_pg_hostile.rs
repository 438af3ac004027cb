//! `pg_stats` and `pg_log` where something else than PostgreSQL answers on its port.

use std::time::Duration;

use pganalytics::clock;
use pganalytics::collect::Collector;
use pganalytics::collect::pg_log::{PgLogCollector, PgLogConfig};
use pganalytics::collect::pg_stats::{PgStatsCollector, PgStatsConfig};
use pganalytics::collect::postgres::PgConnection;

use crate::footprint::kib;
use crate::operator::Host;
use crate::support::false_postgres::{Evil, FalsePostgres};
use crate::support::{until, until_async};

const LIMIT: Duration = Duration::from_secs(60);
/// What may be sent before the agent hangs up: its allowance, and what the system buffers on the
/// way.
const SENT_BYTES_MAX: u64 = 48 << 20;
/// The most that the agent may ever have had in memory, its code included.
const PEAK_KIB_MAX: u64 = 160 << 10;

fn place(server: &FalsePostgres) -> PgConnection {
    let host = server.address.ip().to_string();
    PgConnection { host, port: server.address.port(), ..PgConnection::default() }
}

/// Whatever a server sends without end, the agent hangs up, says why, and tries again later.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_stop_is_hung_up_on() {
    for evil in Evil::ALL {
        let server = FalsePostgres::start(evil).await;
        let connection = place(&server);
        let mut config = PgStatsConfig { connection: connection.clone(), ..Default::default() };
        // Not the clock is to end it.
        config.connection.connect_timeout = LIMIT;
        config.timeouts.client = LIMIT;
        let pg_stats = PgStatsCollector::new(config).collect(clock::now()).await;
        let hint = "hint: is it PostgreSQL that answers there?";
        assert!(pg_stats.as_ref().is_err_and(|error| error.to_string().contains(hint)));
        let config = PgLogConfig { connection, ..PgLogConfig::default() };
        let pg_log = PgLogCollector::new(config, None).collect(clock::now()).await;
        for result in [pg_stats, pg_log] {
            let error = result.expect_err("nothing true comes of it").to_string();
            let told = match evil {
                Evil::LongMessage | Evil::LongRow | Evil::LongError => {
                    "announces a message of 1073741824 bytes"
                }
                Evil::NotPostgres => "announces a message of",
                _ => "sends more than the answer",
            };
            assert!(error.contains(told), "{evil:?}: {error}");
        }
        let ended = async || server.most_sent() > 0;
        until_async("it has noticed", LIMIT, ended).await;
        let sent = server.most_sent();
        assert!(sent < SENT_BYTES_MAX, "{evil:?}: {sent} bytes were taken");
    }
}

/// Nor does it cost the agent memory, whoever answers.
#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_small_whoever_answers() {
    let evils = [
        Evil::LongMessage,
        Evil::EndlessNotices,
        Evil::LongRow,
        Evil::EndlessRows,
        Evil::NoticesForRows,
    ];
    for evil in evils {
        let server = FalsePostgres::start(evil).await;
        let host = Host::new("1h").await;
        let file = host.path("agent.toml");
        let config = fs_err::read_to_string(&file).expect("read");
        let on = "[pg_stats]\ninterval = \"1h\"\ntimeout = \"1min\"\nclient_timeout = \"1min\"\n";
        let config = config.replace("[pg_stats]\nenabled = false\n", on);
        let port = server.address.port();
        let place = format!("[postgres]\nhost = \"127.0.0.1\"\nport = {port}\n");
        fs_err::write(&file, format!("{config}{place}connect_timeout = \"1min\"\n"))
            .expect("write");
        let agent = host.start();
        until("it is told", LIMIT, || agent.stderr().contains("collector=\"pg_stats\" error="));
        until_async("it is hung up on", LIMIT, async || server.most_sent() > 0).await;
        let most = kib(&agent, "VmHWM:");
        assert!(most <= PEAK_KIB_MAX, "{evil:?}: {most} KiB");
        assert!(!agent.stderr().contains("hush"), "a notice is not of the agent's log");
        agent.stop();
    }
}
