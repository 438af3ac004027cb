//! Every behaviour test, in one binary, one module per behaviour. Pure parts are tested beside
//! their code in `src/`; what needs a process, a server or a directory is tested here.
//! `tests/run` installs what these tests need and runs them with the other checks.

#![allow(unreachable_pub, reason = "`pub` here says: part of a support module's face")]
#![allow(missing_docs, reason = "a test's name is its documentation")]

mod support; // PostgreSQL servers of every major, the agent as a process, polling

mod agent_health; // the agent's own health, and backends that do not know it
mod backend_access; // who is refused, for how long, and how often that is said
mod backend_collectors; // registration, tokens, certificates, configurations
mod backend_health; // health: whether it can store
mod backend_hostile; // clients that hold what others need
mod backend_limits; // what an agent says of itself, and documents over a limit
mod backend_migration; // stores of earlier versions, and files that are no store
mod backend_originals; // original collectors, taken as they are
mod backend_outage; // the database away: 503, and nothing lost
mod backend_page; // the page on loopback, and who may see it
mod backend_push; // pushes: what is taken, refused, known already, and stored
mod backend_refusals; // what is not taken is counted by reason, and seen
mod backend_shares; // one collector with many connections, beside others
mod backend_start; // keys: made once, kept, and refused when half is missing
mod backend_store; // what both stores promise, held against SQLite and PostgreSQL
mod backend_users; // login, refresh, logout, roles
mod check; // `agent check`
mod collect_command; // `agent collect` and `agent metrics`
mod collect_host; // sysstat and disk_usage against df, /sys and /proc
mod collect_pg_databases; // pg_stats: which databases are visited, and that they stay free
mod collect_pg_hostile; // somebody else on PostgreSQL's port
mod collect_pg_log; // pg_log: real servers, rotation, truncation, positions
mod collect_pg_log_files; // pg_log: several active files, copies, every way to rotate
mod collect_pg_log_languages; // pg_log: what leaves of the logs of servers in other languages
mod collect_pg_log_secrets; // pg_log: what leaves of a log, in every language
mod collect_pg_objects; // pg_stats: relations and other objects of a database
mod collect_pg_server; // pg_stats: what is about the whole server, held against its own words
mod collect_pg_several; // several servers of one agent: each by itself
mod collect_pg_stats; // pg_stats against real servers of every major, compared with the views
mod collect_pg_work; // pg_stats: who waits, what runs, what is set, what statements cost
mod collect_pg_tls; // TLS to PostgreSQL: every mode, certificates, channel binding, attackers
mod control; // the control socket: one owner, no strangers
mod cli; // wrong command lines and configurations
mod crash; // kill -9 and damage: what was on disk is delivered
mod delivery; // from the collectors to the store, with nothing in the way
mod demo; // the demo, and the account it ends with
mod disk_full; // no free blocks, no free inodes
mod documents; // the documents say what the program does
mod encodings; // backends that do not inflate
mod exactly_once; // kills, lost answers, doubled requests: an audit of every number
mod faults; // every fault of the network, and of what meddles with requests
mod fleet; // ten thousand agents, one backend, simulated
mod identity; // a record is its queue and its number: equal documents, splits, replays
mod foreign_owner; // root in directories of the agent's user
mod footprint; // what the agent costs its host
mod golden; // queues of earlier versions
mod hung_mount; // a log on a file system that does not answer
mod io_faults; // reads, writes and syncs that fail while the agent runs
mod ledger; // lost records, told to the backend until it has heard of them
mod inspect; // what `agent inspect` tells, live and from the directory
mod intake; // other programs: what is taken, refused, and durable before it is answered
mod intake_documents; // the examples of docs/INTAKE.md, run
mod intake_faults; // the intake with kills, full disks, slow and hostile clients
mod link_cli; // `agent register` and its exit codes
mod link_proxy; // through an HTTP proxy, and what its refusals say
mod link_push; // pushes: headers, tokens, answers
mod link_reasons; // why nothing is delivered: in status, log and metrics
mod link_register; // enrolment: what is sent and kept, and what a failure leaves
mod link_renew; // a new certificate before the end of the old, and whatever goes wrong with it
mod link_routes; // several backends: the next one, and back
mod link_skew; // hosts whose clock is wrong, by an hour or by years
mod link_tokens; // tokens of a backend that gives no secret, and of another program
mod link_tls; // trust, certificates, and what each failure says
mod own_files; // modes of files, and what reaches a terminal
mod operator; // status, inspect and replay, with and without a running agent
mod outage; // the backend or the network away, slow, or a stranger
mod remote_config; // the backend changes an agent's configuration
mod refused; // what the backend does not take is found, and put aside by itself
mod reload; // another configuration while the agent runs
mod replay; // what is sent again: refilling, dead hosts, dead letters, kills in the middle
mod replay_dead; // dead letters get another chance
mod scrape; // what a Prometheus scraper finds at the control socket
mod queue_attack; // the directory kept back, moved, copied together, or on a full disk
mod power_loss; // the power goes while the queue is written
mod shutdown; // how an agent ends
mod servers; // the support itself: every PostgreSQL server starts, answers and is gone afterwards
mod ways_back; // hosts that come back: the binary's commands at both ends
mod verdicts; // every answer of a backend, and what the agent does with it
mod tidy; // the rules of this code base that a compiler does not check
