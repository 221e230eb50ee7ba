"""`gunicorn sample.wsgi` takes this by itself."""

import os

bind = os.environ.get("LISTEN") or "127.0.0.1:8080"
workers = 2
threads = 4
# A request that takes longer is given up with its worker; its transaction is rolled back.
timeout = 10
graceful_timeout = 15
