"""What `manage.py check --deploy` says of the settings of the back office."""

from typing import Any

from django.conf import settings
from django.core import checks

PROXY_NOT_TRUSTED = checks.Warning(
    "Something speaks https for us (SECURE_COOKIES or CSRF_TRUSTED_ORIGINS), but TRUSTED_PROXIES is 0.",
    hint=(
        "If that is a proxy, all clients share its address, and with it the limits of logins and of requests without a "
        "valid key: set TRUSTED_PROXIES to the number of proxies. If there is none, silence this check."
    ),
    id="backoffice.W001",
)


@checks.register(checks.Tags.security, deploy=True)
def proxies_are_trusted(app_configs: Any, **_: Any) -> list[checks.CheckMessage]:
    """Warn where clients probably share the address of a proxy."""
    has_proxy = settings.SECURE_COOKIES or settings.CSRF_TRUSTED_ORIGINS
    return [PROXY_NOT_TRUSTED] if has_proxy and not settings.TRUSTED_PROXIES else []
