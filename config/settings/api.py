"""Settings of the API server, which has no users and no sessions."""

from config.settings import base
from config.settings.base import *  # noqa: F403 - the common settings

MIDDLEWARE = [
    "exchange.http.middleware.ApiRequestLogMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "exchange.http.throttles.limit_other_requests",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "config.urls"
APPEND_SLASH = False

TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]  # for `/docs`

SILENCED_SYSTEM_CHECKS = [
    *base.SILENCED_SYSTEM_CHECKS,
    "security.W003",  # no CSRF protection needed: no cookie authenticates a request
]
SECURE_REDIRECT_EXEMPT = [r"^(?!docs$)"]  # all paths but /docs: proxies and health checks use http
