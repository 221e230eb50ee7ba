"""The project: settings, logs, Sentry, and the beat task for those who keep their scheduler."""

from sample.celery import app

__all__ = ["app"]
