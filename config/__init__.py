"""Settings, URLs, Celery and servers of the project."""

from config.celery import app as celery_app  # `shared_task` must find its app in every process

__all__ = ["celery_app"]
