"""Users of the back office with the permissions of a role."""

from django.contrib.auth.models import Group, User
from django.test import Client

VIEWER, OPERATOR, ADMINISTRATOR = "viewer", "operator", "administrator"
ROLES = (VIEWER, OPERATOR, ADMINISTRATOR)
SUPERUSER = "superuser"


def user(role: str, name: str = "", *, password: str | None = None) -> User:
    """Return a user with this role, named after it by default. Without a password, because hashing is slow."""
    found, is_new = User.objects.get_or_create(username=name or role, defaults={"is_staff": True})
    if is_new:
        found.is_superuser = role == SUPERUSER
        found.set_password(password)
        found.save()
        found.groups.set(Group.objects.filter(name=role))
    return found


def browser(role: str, name: str = "") -> Client:
    """Return a browser in which a user with this role is logged in."""
    client = Client()
    client.force_login(user(role, name))
    return client
