"""The settings of the API's server, which knows no users and no sessions."""

from config.settings import base
from config.settings.base import *  # noqa: F403 - what all processes share

MIDDLEWARE = [
    "exchange.http.middleware.ApiRequestLogMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "config.urls"
APPEND_SLASH = False

TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]  # of `/docs`

SILENCED_SYSTEM_CHECKS = [
    *base.SILENCED_SYSTEM_CHECKS,
    "security.W003",  # no cookie authenticates a request, so there is none to forge, and no form to send a token with
]
SECURE_REDIRECT_EXEMPT = [r"^(?!docs$)"]  # all but the page: proxies and health checks speak http to it
