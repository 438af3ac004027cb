//! Users, their sessions, and the audit of who did what.

use deadpool_postgres::{Client, GenericClient};
use jiff::Timestamp;
use tokio_postgres::Row;
use uuid::Uuid;

use super::super::StoreError;
use super::super::rows::{
    Account, Audit, Listing, NewUser, Page, Role, Rotate, Rotation, Session, User,
};
use super::counted;

const SESSION_USER: &str = "SELECT u.*, s.refresh_id FROM sessions s
  JOIN users u ON u.id = s.user_id
 WHERE s.id = $1 AND s.ended_at IS NULL AND s.expires_at > $2 AND u.is_active";

pub(super) async fn add(db: &mut Client, new: &NewUser) -> Result<i64, StoreError> {
    let transaction = db.transaction().await?;
    let row = transaction
        .query_one(
            "INSERT INTO users (username, email, full_name, role, password_hash, created_at,
                                updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $6) RETURNING id",
            &[
                &new.username,
                &new.email,
                &new.full_name,
                &new.role.as_str(),
                &new.password_hash,
                &new.audit.at,
            ],
        )
        .await?;
    audit(&transaction, &new.audit).await?;
    transaction.commit().await?;
    Ok(row.try_get(0)?)
}

pub(super) async fn disable(
    db: &mut Client,
    username: &str,
    entry: &Audit,
) -> Result<bool, StoreError> {
    let transaction = db.transaction().await?;
    let changed = transaction
        .execute(
            "UPDATE users SET is_active = false, updated_at = $2 WHERE username = $1",
            &[&username, &entry.at],
        )
        .await?;
    if changed > 0 {
        audit(&transaction, entry).await?;
    }
    transaction.commit().await?;
    Ok(changed > 0)
}

pub(super) async fn account(db: &Client, username: &str) -> Result<Option<Account>, StoreError> {
    if username.contains('\0') {
        return Ok(None);
    }
    let statement = db.prepare_cached("SELECT * FROM users WHERE username = $1").await?;
    let Some(row) = db.query_opt(&statement, &[&username]).await? else { return Ok(None) };
    Ok(Some(Account { user: user(&row)?, password_hash: row.try_get("password_hash")? }))
}

pub(super) async fn open_session(db: &mut Client, new: &Session) -> Result<(), StoreError> {
    let transaction = db.transaction().await?;
    transaction
        .execute(
            "INSERT INTO sessions (id, user_id, refresh_id, created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5)",
            &[&new.id, &new.user_id, &new.refresh_id, &new.at, &new.expires_at],
        )
        .await?;
    let login = "UPDATE users SET last_login_at = $2 WHERE id = $1";
    transaction.execute(login, &[&new.user_id, &new.at]).await?;
    transaction.execute("DELETE FROM sessions WHERE expires_at < $1", &[&new.at]).await?;
    Ok(transaction.commit().await?)
}

pub(super) async fn session_user(
    db: &Client,
    id: Uuid,
    now: Timestamp,
) -> Result<Option<User>, StoreError> {
    let statement = db.prepare_cached(SESSION_USER).await?;
    db.query_opt(&statement, &[&id, &now]).await?.as_ref().map(user).transpose()
}

pub(super) async fn rotate(db: &mut Client, rotate: &Rotate) -> Result<Rotation, StoreError> {
    let transaction = db.transaction().await?;
    let live = format!("{SESSION_USER} FOR UPDATE OF s");
    let Some(row) = transaction.query_opt(&live, &[&rotate.session, &rotate.at]).await? else {
        return Ok(Rotation::Dead);
    };
    let rotation = if row.try_get::<_, Uuid>("refresh_id")? == rotate.presented {
        transaction
            .execute(
                "UPDATE sessions SET refresh_id = $2, expires_at = $3 WHERE id = $1",
                &[&rotate.session, &rotate.next, &rotate.expires_at],
            )
            .await?;
        Rotation::Done(Box::new(user(&row)?))
    } else {
        end_session(&transaction, rotate.session, rotate.at).await?;
        Rotation::Reused
    };
    transaction.commit().await?;
    Ok(rotation)
}

pub(super) async fn end_session(
    db: &impl GenericClient,
    id: Uuid,
    now: Timestamp,
) -> Result<(), StoreError> {
    let end = "UPDATE sessions SET ended_at = $2 WHERE id = $1 AND ended_at IS NULL";
    db.execute(end, &[&id, &now]).await?;
    Ok(())
}

pub(super) async fn audit(db: &impl GenericClient, entry: &Audit) -> Result<(), StoreError> {
    let insert = "INSERT INTO audit (at, actor, action, subject) VALUES ($1, $2, $3, $4)";
    let statement = db.prepare_cached(insert).await?;
    db.execute(&statement, &[&entry.at, &entry.actor, &entry.action, &entry.subject]).await?;
    Ok(())
}

pub(super) async fn audits(db: &Client, page: Page) -> Result<Listing<Audit>, StoreError> {
    let total = counted(&db.query_one("SELECT count(*) AS n FROM audit", &[]).await?, "n")?;
    let rows = db
        .query(
            "SELECT at, actor, action, subject FROM audit ORDER BY id DESC LIMIT $1 OFFSET $2",
            &[&page.limit(), &page.offset()],
        )
        .await?;
    let entry = |row: &Row| -> Result<Audit, StoreError> {
        Ok(Audit {
            at: row.try_get("at")?,
            actor: row.try_get("actor")?,
            action: row.try_get("action")?,
            subject: row.try_get("subject")?,
        })
    };
    Ok(Listing { rows: rows.iter().map(entry).collect::<Result<_, _>>()?, total })
}

fn user(row: &Row) -> Result<User, StoreError> {
    let role: &str = row.try_get("role")?;
    Ok(User {
        id: row.try_get("id")?,
        username: row.try_get("username")?,
        email: row.try_get("email")?,
        full_name: row.try_get("full_name")?,
        role: Role::parse(role).ok_or_else(|| StoreError::Damaged(format!("the role {role:?}")))?,
        is_active: row.try_get("is_active")?,
        last_login: row.try_get("last_login_at")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}
