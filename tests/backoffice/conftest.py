"""Fixtures for the tests of the back office."""

import pytest
from django.test import Client
from pytest_django import Settings

from tests.backoffice.admin_client import sign_in


@pytest.fixture
def root(client: Client) -> Client:
    """A superuser's browser."""
    return sign_in(client)


@pytest.fixture
def quick_passwords(settings: Settings) -> None:
    """Passwords are hashed in no time, where a good hash takes a third of a second."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
