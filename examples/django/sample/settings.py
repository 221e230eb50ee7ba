"""Settings. README.md lists the variables."""

import secrets

from sample import environment, logs, sentry

DATABASES = {"default": environment.database("DATABASE_URL")}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["pillarbox.django", "users"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware", "sample.logs.bind_request"]
ROOT_URLCONF = "sample.urls"
WSGI_APPLICATION = "sample.wsgi.application"
USE_TZ = True
# Nothing here is signed; a project with sessions sets one that stays.
SECRET_KEY = environment.variable("SECRET_KEY") or secrets.token_urlsafe()
DEBUG = False
ALLOWED_HOSTS = environment.variable("ALLOWED_HOSTS", "localhost,127.0.0.1").split(",")
# Far above a user with the longest fields, in any escaping.
DATA_UPLOAD_MAX_MEMORY_SIZE = 16 << 10

#: Fault injection: this share of requests fails after publishing, before the commit.
USERS_FAIL_RATE = environment.rate("USERS_FAIL_RATE")

#: Where the Celery application queues its tasks, and how often it calls `pillarbox relay --once`.
CELERY_BROKER_URL = environment.variable("REDIS_URL", "redis://127.0.0.1:6379/0")
RELAY_EVERY_S = environment.seconds("RELAY_EVERY_S", "5")
RELAY_TIME_LIMIT_S = environment.seconds("RELAY_TIME_LIMIT_S", "300")
RELAY_PROGRAM = environment.variable("PILLARBOX", "pillarbox")

LOGGING_CONFIG = None
logs.configure(environment.choice("LOG_FORMAT", ("text", "json")))
sentry.configure(environment.variable("SENTRY_DSN"))
