"""Deployment checks of the back office settings (`manage.py check --deploy`)."""

from typing import Any

from django.conf import settings
from django.core import checks

PROXY_NOT_TRUSTED = checks.Warning(
    "A proxy seems to terminate https (SECURE_COOKIES or CSRF_TRUSTED_ORIGINS is set), but TRUSTED_PROXIES is 0.",
    hint=(
        "Behind a proxy, all clients share its address, and so the limits on logins and on requests without a valid "
        "key. Set TRUSTED_PROXIES to the number of proxies. Without a proxy, silence this check."
    ),
    id="backoffice.W001",
)


@checks.register(checks.Tags.security, deploy=True)
def proxies_are_trusted(app_configs: Any, **_: Any) -> list[checks.CheckMessage]:
    """Warn if clients probably share the address of a proxy."""
    has_proxy = settings.SECURE_COOKIES or settings.CSRF_TRUSTED_ORIGINS
    return [PROXY_NOT_TRUSTED] if has_proxy and not settings.TRUSTED_PROXIES else []
