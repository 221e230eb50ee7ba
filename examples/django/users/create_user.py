"""The use case: a user and the event that it was created, in one transaction."""

from __future__ import annotations

import dataclasses
import random
import unicodedata
import uuid
from typing import Any

import pillarbox.django
import structlog
from django.conf import settings
from django.db import IntegrityError, transaction

from sample.failures import describe, sqlstate
from users.events import UserCreated
from users.models import User

log = structlog.get_logger("users")

#: The only unique column is the email.
_UNIQUE_VIOLATION = "23505"

#: Characters of an email address (RFC 5321, 4.5.3.1.3).
_EMAIL_CHARS_MAX = 254
#: Characters of a name: longer than any on record, short enough for every page.
_NAME_CHARS_MAX = 150


class AlreadyExists(Exception):
    """A user has this email."""


class Injected(Exception):
    """Fault injection: the transaction was rolled back."""


class InvalidFields(Exception):
    """Fields that do not hold, and why."""

    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__("; ".join(f"{field} {reason}" for field, reason in fields.items()))
        self.fields = fields


@dataclasses.dataclass(frozen=True)
class NewUser:
    """What a client asks for, already checked."""

    email: str
    first_name: str
    last_name: str

    @classmethod
    def checked(cls, given: dict[str, Any]) -> NewUser:
        """White space around a value does not count. Raises :class:`InvalidFields`."""
        invalid: dict[str, str] = {}
        found: dict[str, str] = {}
        for field, chars_max in (
            ("email", _EMAIL_CHARS_MAX),
            ("first_name", _NAME_CHARS_MAX),
            ("last_name", _NAME_CHARS_MAX),
        ):
            value = given.get(field)
            text = value.strip() if isinstance(value, str) else ""
            reason = _reason(value, text, chars_max)
            if reason is None and field == "email" and not _is_email(text):
                reason = "is not an email address"
            if reason is not None:
                invalid[field] = reason
            found[field] = text
        if invalid:
            raise InvalidFields(invalid)
        return cls(**found)


def create_user(new: NewUser) -> User:
    """Creates the user and publishes `user_created`, both or neither.

    Raises :class:`AlreadyExists`; any other error means that nothing was committed, or that the
    answer to the commit was lost.
    """
    bound = log.bind(use_case="create_user")
    try:
        with transaction.atomic():
            user, event_id = _create(new)
    except AlreadyExists:
        bound.info("user not created", outcome="already_exists")
        raise
    except Exception as error:
        bound.warning("user not created", outcome="rolled_back", error=describe(error))
        raise
    bound.info("user created", outcome="created", user_id=user.pk, event_id=str(event_id))
    return user


def _create(new: NewUser) -> tuple[User, uuid.UUID]:
    try:
        # Waits for a concurrent transaction with the same email, and fails if that commits.
        with transaction.atomic():
            user = User.objects.create(**dataclasses.asdict(new))
    except IntegrityError as error:
        if sqlstate(error) != _UNIQUE_VIOLATION:
            raise
        # The server's error quotes the email: it goes no further.
        raise AlreadyExists from None
    event = UserCreated(email=new.email, first_name=new.first_name, last_name=new.last_name)
    event_id = pillarbox.django.publish(event)
    if random.random() < settings.USERS_FAIL_RATE:  # noqa: S311
        raise Injected("fault injected by USERS_FAIL_RATE")
    return user, event_id


def _reason(value: object, text: str, chars_max: int) -> str | None:
    if value is None:
        return "is required"
    if not isinstance(value, str):
        return "must be text"
    if not text:
        return "must not be empty"
    if len(text) > chars_max:
        return f"must not have more than {chars_max} characters"
    if any(unicodedata.category(character) == "Cc" for character in text):
        return "must not contain control characters"
    return None


def _is_email(text: str) -> bool:
    """Refuses what is certainly not an address; only a mail that arrives proves the rest."""
    local, at, domain = text.rpartition("@")
    labels = domain.split(".")
    clean = bool(local) and "@" not in local and not any(map(str.isspace, text))
    return bool(at) and clean and len(labels) > 1 and all(labels)
