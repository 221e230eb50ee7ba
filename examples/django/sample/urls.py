"""The paths, which are those of the Rust sample."""

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from users.views import healthz, users

urlpatterns = [path("users", users), path("healthz", healthz)]


def handler404(request: HttpRequest, exception: Exception) -> HttpResponse:
    """No such page."""
    return JsonResponse({"error": "no such page; see /users"}, status=404)


def handler500(request: HttpRequest) -> HttpResponse:
    """What no view has answered."""
    return JsonResponse({"error": "something went wrong; try again"}, status=500)
