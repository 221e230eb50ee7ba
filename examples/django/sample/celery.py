"""The Celery application, for those who keep their scheduler instead of running a relay.

Beat queues `deliver` every few seconds; a worker runs `pillarbox relay --once`, which delivers what
is committed and ends. Events arrive later than by a running relay, and as exactly.
"""

from __future__ import annotations

import os

import structlog
from celery import Celery
from celery.signals import setup_logging
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "sample.settings")

log = structlog.get_logger("sample.celery")

app = Celery("sample")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.task_ignore_result = True
app.conf.broker_connection_retry_on_startup = True


@setup_logging.connect
def _keep_our_logs(**_: object) -> None:
    """Celery would configure logging anew."""


@app.on_after_configure.connect
def _schedule(sender: Celery, **_: object) -> None:
    every_s = settings.RELAY_EVERY_S
    # What no worker took before the next one is due is dropped: one call delivers everything.
    sender.add_periodic_task(every_s, deliver.s(), name="deliver", expires=every_s)


# A worker that is killed has perhaps delivered; the next beat asks again, which is always safe.
@app.task(name="deliver", acks_late=False)
def deliver() -> str:
    """Delivers what is committed."""
    from sample import relay

    return relay.once(settings.RELAY_PROGRAM, time_limit_s=settings.RELAY_TIME_LIMIT_S)
