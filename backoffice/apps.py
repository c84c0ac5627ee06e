from django.apps import AppConfig, apps
from django.contrib.admin.apps import AdminConfig as DjangoAdminConfig

from backoffice import checks as checks


class BackOfficeConfig(AppConfig):
    name = "backoffice"

    def ready(self) -> None:
        apps.get_app_config("auth").verbose_name = "Users"  # heading of its pages


class AdminConfig(DjangoAdminConfig):
    """Django's admin app with the site of the back office."""

    default_site = "backoffice.site.BackOfficeSite"
