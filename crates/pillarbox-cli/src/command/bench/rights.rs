//! What a benchmark needs of PostgreSQL before it makes anything there.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::exit::Failure;
use crate::identifier::quoted;

/// Comment on roles that a benchmark made, so that the last one that uses them drops them.
const MADE_BY: &str = "made by pillarbox bench";

/// Who runs the benchmark, and where.
pub(super) struct Rights {
    user: String,
    may_create_databases: bool,
    may_create_roles: bool,
    /// Roles of the schema that the cluster lacks.
    roles_missing: Vec<String>,
    /// Whether they may act as the owner of the schema; `None` where that role is not there.
    is_owner: Option<bool>,
    pub(super) version: String,
    pub(super) fsync: String,
}

impl Rights {
    pub(super) async fn read(client: &Client) -> Result<Self, Failure> {
        const RIGHTS: &str = include_str!("sql/rights.sql");
        let row = client.query_one(RIGHTS, &[]).await?;
        Ok(Self {
            user: row.get(0),
            may_create_databases: row.get(1),
            may_create_roles: row.get(2),
            roles_missing: row.get(3),
            is_owner: row.get(4),
            version: row.get(5),
            fsync: row.get(6),
        })
    }

    /// Refuses a user who cannot make what the benchmark needs.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let user = quoted(&self.user);
        let needed = if !self.may_create_databases {
            format!(
                "may create no database, and a benchmark works in one of its own; alter role {user} createdb"
            )
        } else if self.is_owner == Some(false) {
            // `migrate` would make itself a member, and stay one.
            format!("is no member of pillarbox_owner; grant pillarbox_owner to {user}")
        } else if !self.roles_missing.is_empty() && !self.may_create_roles {
            format!(
                "may create no role, and this server lacks {}; run pillarbox migrate as an administrator \
                 first, or alter role {user} createrole",
                self.roles_missing.join(", ")
            )
        } else {
            return Ok(());
        };
        Err(Failure::refused(format!(
            "the postgresql user {} {needed}; or give another user in DATABASE_URL",
            self.user
        )))
    }

    /// Makes the roles that the cluster lacks, marked as ours.
    pub(super) async fn make_roles(&self, client: &Client) -> Result<(), Failure> {
        for role in &self.roles_missing {
            let role = quoted(role);
            let create =
                format!("create role {role} nologin; comment on role {role} is '{MADE_BY}'");
            match client.batch_execute(&create).await {
                // Somebody migrates at this moment.
                Err(error) if error.code() == Some(&SqlState::DUPLICATE_OBJECT) => {}
                made => made?,
            }
        }
        Ok(())
    }
}

/// Drops the roles that benchmarks made, unless somebody but this one needs them by now.
pub(super) async fn drop_roles(
    client: &Client,
    benchmark: &str,
) -> Result<(), tokio_postgres::Error> {
    const ROLES: &str = include_str!("sql/roles.sql");
    for row in client.query(ROLES, &[&MADE_BY, &benchmark]).await? {
        let role = quoted(row.get(0));
        match client.batch_execute(&format!("drop role {role}")).await {
            Err(error)
                if [
                    Some(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST),
                    Some(&SqlState::UNDEFINED_OBJECT),
                ]
                .contains(&error.code()) => {}
            dropped => dropped?,
        }
    }
    Ok(())
}
