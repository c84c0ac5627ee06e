from django.apps import AppConfig, apps
from django.contrib.admin.apps import AdminConfig as DjangoAdminConfig

from backoffice import checks as checks


class BackOfficeConfig(AppConfig):
    name = "backoffice"

    def ready(self) -> None:
        apps.get_app_config("auth").verbose_name = "People"  # above its pages here


class AdminConfig(DjangoAdminConfig):
    """Django's admin with our site in place of its own."""

    default_site = "backoffice.site.BackOfficeSite"
