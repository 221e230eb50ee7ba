"""An application as it is before Pillarbox: what the guides in docs/migrate start from."""

from shop.celery import app as celery_app

__all__ = ["celery_app"]
