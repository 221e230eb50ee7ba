"""The HTTP surface: `POST /users`, `GET /users`, `GET /healthz`. Answers and errors are JSON."""

from __future__ import annotations

import json
from typing import Any

import sentry_sdk
import structlog
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_GET, require_http_methods

from sample.failures import describe
from users.create_user import AlreadyExists, InvalidFields, NewUser, create_user
from users.models import User

log = structlog.get_logger("users")

#: Users on a page unless `limit` says otherwise, and at most.
_PAGE_DEFAULT = 100
_PAGE_MAX = 1000


@require_http_methods(["GET", "POST"])
def users(request: HttpRequest) -> HttpResponse:
    """Creates a user, or lists them."""
    return _create(request) if request.method == "POST" else _list(request)


@require_GET
def healthz(request: HttpRequest) -> HttpResponse:
    """The process serves."""
    return HttpResponse(status=204)


def _create(request: HttpRequest) -> HttpResponse:
    if request.content_type != "application/json":
        return _failure(415, "send content-type: application/json")
    try:
        given = json.loads(request.body)
    except RequestDataTooBig:
        return _failure(413, "the request is too large")
    except ValueError:
        return _failure(400, "the request is not JSON")
    if not isinstance(given, dict):
        return _failure(422, "send a JSON object")
    try:
        user = create_user(NewUser.checked(given))
    except InvalidFields as error:
        return JsonResponse({"error": str(error), "fields": error.fields}, status=422)
    except AlreadyExists:
        return _failure(409, "User with this email already exists")
    except Exception as error:  # noqa: BLE001
        sentry_sdk.capture_exception(error)
        return _failure(500, "the user was not created; try again")
    return JsonResponse(_as_json(user), status=201)


def _list(request: HttpRequest) -> HttpResponse:
    try:
        after = int(request.GET.get("after", "0"))
        limit = int(request.GET.get("limit", str(_PAGE_DEFAULT)))
    except ValueError:
        return _failure(400, "after and limit are numbers")
    if not 1 <= limit <= _PAGE_MAX:
        reason = f"must be from 1 to {_PAGE_MAX}"
        return JsonResponse({"error": f"limit {reason}", "fields": {"limit": reason}}, status=422)
    try:
        found = list(User.objects.filter(pk__gt=after).order_by("pk")[:limit])
    except Exception as error:  # noqa: BLE001
        log.error("no list", use_case="list_users", outcome="failed", error=describe(error))
        sentry_sdk.capture_exception(error)
        return _failure(500, "the users cannot be listed; try again")
    return JsonResponse({"users": [_as_json(user) for user in found]})


def _as_json(user: User) -> dict[str, Any]:
    created_at = user.created_at.isoformat().replace("+00:00", "Z")
    return {
        "id": user.pk,
        "email": user.email,
        "first_name": user.first_name,
        "last_name": user.last_name,
        "created_at": created_at,
    }


def _failure(status: int, message: str) -> HttpResponse:
    return JsonResponse({"error": message}, status=status)
