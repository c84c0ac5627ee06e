"""How the packages are put together: settings, URLs, Celery, servers."""

from config.celery import app as celery_app  # so that `shared_task` finds its app in every process

__all__ = ["celery_app"]
