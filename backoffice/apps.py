from django.apps import AppConfig
from django.contrib.admin.apps import AdminConfig as DjangoAdminConfig


class BackOfficeConfig(AppConfig):
    name = "backoffice"


class AdminConfig(DjangoAdminConfig):
    """Django's admin with our site in place of its own."""

    default_site = "backoffice.site.BackOffice"
