"""People of the back office, each with the rights of a role."""

from django.contrib.auth.models import Group, User
from django.test import Client

VIEWER, OPERATOR, ADMINISTRATOR = "viewer", "operator", "administrator"
ROLES = (VIEWER, OPERATOR, ADMINISTRATOR)
SUPERUSER = "superuser"


def user(role: str, name: str = "", *, password: str | None = None) -> User:
    """Somebody of this role, called like it unless a name is given; without a password, since hashing takes long."""
    found, is_new = User.objects.get_or_create(username=name or role, defaults={"is_staff": True})
    if is_new:
        found.is_superuser = role == SUPERUSER
        found.set_password(password)
        found.save()
        found.groups.set(Group.objects.filter(name=role))
    return found


def browser(role: str, name: str = "") -> Client:
    """A browser in which somebody of this role has logged in."""
    client = Client()
    client.force_login(user(role, name))
    return client
