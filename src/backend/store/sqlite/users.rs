//! Users, their sessions, and the audit of who did what.

use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, Row, Transaction, params};
use uuid::Uuid;

use super::super::StoreError;
use super::super::rows::{
    Account, Audit, Listing, NewUser, Page, Role, Rotate, Rotation, Session, User,
};
use super::{counted, micros, time, time_option, wrong};

const SESSION_USER: &str = "SELECT u.*, s.refresh_id FROM sessions s
  JOIN users u ON u.id = s.user_id
 WHERE s.id = ?1 AND s.ended_at IS NULL AND s.expires_at > ?2 AND u.is_active";

pub(super) fn add(db: &Transaction<'_>, new: &NewUser) -> Result<i64, StoreError> {
    let at = micros(new.audit.at);
    db.execute(
        "INSERT INTO users (username, email, full_name, role, password_hash, created_at,
                            updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)",
        params![new.username, new.email, new.full_name, new.role.as_str(), new.password_hash, at],
    )?;
    let id = db.last_insert_rowid();
    audit(db, &new.audit)?;
    Ok(id)
}

pub(super) fn disable(
    db: &Transaction<'_>,
    username: &str,
    entry: &Audit,
) -> Result<bool, StoreError> {
    let changed = db.execute(
        "UPDATE users SET is_active = 0, updated_at = ?2 WHERE username = ?1",
        params![username, micros(entry.at)],
    )?;
    if changed > 0 {
        audit(db, entry)?;
    }
    Ok(changed > 0)
}

pub(super) fn account(db: &Transaction<'_>, username: &str) -> Result<Option<Account>, StoreError> {
    let mut statement = db.prepare_cached("SELECT * FROM users WHERE username = ?1")?;
    let found = statement
        .query_row([username], |row| {
            Ok(Account { user: user(row)?, password_hash: row.get("password_hash")? })
        })
        .optional()?;
    Ok(found)
}

pub(super) fn open_session(db: &Transaction<'_>, new: &Session) -> Result<(), StoreError> {
    db.execute(
        "INSERT INTO sessions (id, user_id, refresh_id, created_at, expires_at)
         VALUES (?1, ?2, ?3, ?4, ?5)",
        params![
            new.id.to_string(),
            new.user_id,
            new.refresh_id.to_string(),
            micros(new.at),
            micros(new.expires_at)
        ],
    )?;
    db.execute(
        "UPDATE users SET last_login_at = ?2 WHERE id = ?1",
        params![new.user_id, micros(new.at)],
    )?;
    db.execute("DELETE FROM sessions WHERE expires_at < ?1", [micros(new.at)])?;
    Ok(())
}

pub(super) fn session_user(
    db: &Transaction<'_>,
    id: Uuid,
    now: Timestamp,
) -> Result<Option<User>, StoreError> {
    let mut statement = db.prepare_cached(SESSION_USER)?;
    Ok(statement.query_row(params![id.to_string(), micros(now)], user).optional()?)
}

pub(super) fn rotate(db: &Transaction<'_>, rotate: &Rotate) -> Result<Rotation, StoreError> {
    let session = rotate.session.to_string();
    let live = db
        .prepare_cached(SESSION_USER)?
        .query_row(params![session, micros(rotate.at)], |row| {
            Ok((user(row)?, row.get::<_, String>("refresh_id")?))
        })
        .optional()?;
    let Some((user, current)) = live else { return Ok(Rotation::Dead) };
    if current != rotate.presented.to_string() {
        end_session(db, rotate.session, rotate.at)?;
        return Ok(Rotation::Reused);
    }
    db.execute(
        "UPDATE sessions SET refresh_id = ?2, expires_at = ?3 WHERE id = ?1",
        params![session, rotate.next.to_string(), micros(rotate.expires_at)],
    )?;
    Ok(Rotation::Done(Box::new(user)))
}

pub(super) fn end_session(
    db: &Transaction<'_>,
    id: Uuid,
    now: Timestamp,
) -> Result<(), StoreError> {
    db.execute(
        "UPDATE sessions SET ended_at = ?2 WHERE id = ?1 AND ended_at IS NULL",
        params![id.to_string(), micros(now)],
    )?;
    Ok(())
}

pub(super) fn audit(db: &Transaction<'_>, entry: &Audit) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO audit (at, actor, action, subject) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![micros(entry.at), entry.actor, entry.action, entry.subject])?;
    Ok(())
}

pub(super) fn audits(db: &Transaction<'_>, page: Page) -> Result<Listing<Audit>, StoreError> {
    let total = db.query_row("SELECT count(*) AS n FROM audit", [], |row| counted(row, "n"))?;
    let mut statement = db.prepare_cached(
        "SELECT at, actor, action, subject FROM audit ORDER BY id DESC LIMIT ?1 OFFSET ?2",
    )?;
    let rows = statement
        .query_map(params![page.limit(), page.offset()], |row| {
            Ok(Audit {
                at: time(row, "at")?,
                actor: row.get("actor")?,
                action: row.get("action")?,
                subject: row.get("subject")?,
            })
        })?
        .collect::<Result<_, _>>()?;
    Ok(Listing { rows, total })
}

fn user(row: &Row<'_>) -> rusqlite::Result<User> {
    let role = row.get_ref("role")?.as_str()?;
    Ok(User {
        id: row.get("id")?,
        username: row.get("username")?,
        email: row.get("email")?,
        full_name: row.get("full_name")?,
        role: Role::parse(role).ok_or_else(|| wrong(std::fmt::Error))?,
        is_active: row.get("is_active")?,
        last_login: time_option(row, "last_login_at")?,
        created_at: time(row, "created_at")?,
        updated_at: time(row, "updated_at")?,
    })
}
