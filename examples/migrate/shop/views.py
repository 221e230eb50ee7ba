"""`POST /EMAIL` creates a user, by the function of a guide."""

from __future__ import annotations

import os

from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.module_loading import import_string


def create(_: HttpRequest, email: str) -> HttpResponse:
    """The function has its own transaction."""
    import_string(os.environ["CREATE_USER"])(email)
    return HttpResponse(status=201)


urlpatterns = [path("<str:email>", create)]
