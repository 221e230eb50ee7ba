//! The use case: a user and the event that it was created, in one transaction.

use pillarbox::{Error as PublishError, Event, Publisher, Uuid};
use serde::Serialize;
use sqlx::{FromRow, PgPool};
use tracing::{error, info};

/// Characters of an email address (RFC 5321, 4.5.3.1.3).
const EMAIL_CHARS_MAX: usize = 254;
/// Characters of a name: longer than any on record, short enough for every page.
const NAME_CHARS_MAX: usize = 150;

/// What a client asks for, already checked.
#[derive(Clone)]
pub(crate) struct NewUser {
    email: String,
    first_name: String,
    last_name: String,
}

/// A field that does not hold, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InvalidField {
    pub(crate) field: &'static str,
    pub(crate) reason: String,
}

#[derive(FromRow, Serialize)]
pub(crate) struct User {
    id: i64,
    email: String,
    first_name: String,
    last_name: String,
    created_at: String,
}

#[derive(Serialize)]
struct UserCreated<'a> {
    email: &'a str,
    first_name: &'a str,
    last_name: &'a str,
}

impl Event for UserCreated<'_> {
    const TYPE: &'static str = "user_created";
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error("User with this email already exists")]
    AlreadyExists,
    #[error("fault injected by USERS_FAIL_RATE, the transaction was rolled back")]
    Injected,
    #[error("the event could not be published")]
    Publish(#[from] PublishError),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

impl NewUser {
    /// Checks what was given; white space around it does not count.
    pub(crate) fn new(
        email: Option<String>,
        first_name: Option<String>,
        last_name: Option<String>,
    ) -> Result<Self, Vec<InvalidField>> {
        let mut invalid = Vec::new();
        let mut field = |name, value, max| {
            text(value, max).unwrap_or_else(|reason| {
                invalid.push(InvalidField {
                    field: name,
                    reason,
                });
                String::new()
            })
        };
        let email = field("email", email, EMAIL_CHARS_MAX);
        let first_name = field("first_name", first_name, NAME_CHARS_MAX);
        let last_name = field("last_name", last_name, NAME_CHARS_MAX);
        if !email.is_empty() && !is_email(&email) {
            let reason = "is not an email address".to_owned();
            invalid.push(InvalidField {
                field: "email",
                reason,
            });
        }
        if invalid.is_empty() {
            Ok(Self {
                email,
                first_name,
                last_name,
            })
        } else {
            Err(invalid)
        }
    }
}

fn text(value: Option<String>, chars_max: usize) -> Result<String, String> {
    let value = value.ok_or("is required")?;
    let value = value.trim();
    if value.is_empty() {
        Err("must not be empty".to_owned())
    } else if value.chars().count() > chars_max {
        Err(format!("must not have more than {chars_max} characters"))
    } else if value.chars().any(char::is_control) {
        Err("must not contain control characters".to_owned())
    } else {
        Ok(value.to_owned())
    }
}

/// Refuses what is certainly not an address; only a mail that arrives proves the rest.
fn is_email(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else {
        return false;
    };
    let labels_hold = domain.split('.').all(|label| !label.is_empty());
    let clean = |part: &str| !part.is_empty() && !part.contains(char::is_whitespace);
    clean(local) && !local.contains('@') && clean(domain) && domain.contains('.') && labels_hold
}

/// Creates users and lists them.
#[derive(Clone, Debug)]
pub(crate) struct Users {
    pool: PgPool,
    publisher: Publisher,
    fail_rate: f64,
}

impl Users {
    pub(crate) fn new(pool: PgPool, fail_rate: f64) -> Self {
        Self {
            pool,
            publisher: Publisher::new(),
            fail_rate,
        }
    }

    /// Creates the user and publishes `user_created`, both or neither. Dropping the future
    /// rolls back, unless the commit is already on its way.
    pub(crate) async fn create(&self, new: NewUser) -> Result<User, CreateError> {
        let created = self.create_in_transaction(&new).await;
        let use_case = "create_user";
        match &created {
            Ok((user, event_id)) => {
                info!(use_case, user_id = user.id, %event_id, outcome = "created", "user created");
            }
            Err(CreateError::AlreadyExists) => {
                info!(use_case, outcome = "already_exists", "user not created");
            }
            Err(error) => {
                error!(use_case, outcome = "rolled_back", error = %chain(error), "user not created");
            }
        }
        created.map(|(user, _)| user)
    }

    async fn create_in_transaction(&self, new: &NewUser) -> Result<(User, Uuid), CreateError> {
        let mut tx = self.pool.begin().await?;
        let user: Option<User> = sqlx::query_as(include_str!("sql/insert_user.sql"))
            .bind(&new.email)
            .bind(&new.first_name)
            .bind(&new.last_name)
            .fetch_optional(&mut *tx)
            .await?;
        let user = user.ok_or(CreateError::AlreadyExists)?;
        let event = UserCreated {
            email: &user.email,
            first_name: &user.first_name,
            last_name: &user.last_name,
        };
        let event_id = self.publisher.publish(&mut tx, &event).await?;
        if rand::random_bool(self.fail_rate) {
            tx.rollback().await?;
            return Err(CreateError::Injected);
        }
        tx.commit().await?;
        Ok((user, event_id))
    }

    /// Users with an id above `after`, in the order of their ids, at most `limit`.
    pub(crate) async fn list(&self, after: i64, limit: i64) -> Result<Vec<User>, sqlx::Error> {
        sqlx::query_as(include_str!("sql/list_users.sql"))
            .bind(after)
            .bind(limit)
            .fetch_all(&self.pool)
            .await
    }
}

/// The messages of an error and its sources. `Display` only: `Debug` of a database error holds
/// the values of the row.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(email: &str, first_name: &str, last_name: &str) -> Vec<&'static str> {
        let given = [email, first_name, last_name].map(|text| Some(text.to_owned()));
        let [email, first_name, last_name] = given;
        match NewUser::new(email, first_name, last_name) {
            Ok(_) => vec![],
            Err(invalid) => invalid.iter().map(|invalid| invalid.field).collect(),
        }
    }

    #[test]
    fn what_is_no_email_address_is_refused() {
        for email in [
            "",
            " ",
            "ada",
            "@example.org",
            "ada@",
            "ada@localhost",
            "a@b@c.org",
            "a b@c.org",
            "a@.org",
            "a@c..org",
            "a@c.org.",
            "a\u{0}@c.org",
        ] {
            assert_eq!(fields(email, "Ada", "Lovelace"), ["email"], "{email:?}");
        }
        for email in ["ada@example.org", " a.b+c@d-e.example ", "ä@ü.example"] {
            assert!(fields(email, "Ada", "Lovelace").is_empty(), "{email:?}");
        }
    }

    #[test]
    fn every_field_that_does_not_hold_is_named() {
        let long = "x".repeat(151);
        assert_eq!(fields("x", "", &long), ["first_name", "last_name", "email"]);
        assert_eq!(
            fields(&format!("{}@b.org", "a".repeat(249)), "A", "B"),
            ["email"]
        );
        assert!(fields(&format!("{}@b.org", "a".repeat(248)), "é", &"é".repeat(150)).is_empty());
    }
}
