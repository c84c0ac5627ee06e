"""Session store of the back office: Django's table with a fixed end.

Django extends a session whenever it is written to. Here, `SESSION_COOKIE_AGE` counts from the login, so that a browser
that stays open asks for the password again.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.contrib.auth.models import User
from django.contrib.sessions.backends import db
from django.contrib.sessions.base_session import AbstractBaseSession
from django.contrib.sessions.models import Session

BEGAN = "began"


class SessionStore(db.SessionStore):
    def cycle_key(self) -> None:
        """Restart the age on a login, but not when a second factor or a new password changes the key."""
        if SESSION_KEY not in self:
            self.pop(BEGAN, None)
        super().cycle_key()

    def create_model_instance(self, data: dict[str, Any]) -> AbstractBaseSession:
        began = data.setdefault(BEGAN, datetime.now(UTC).timestamp())
        row = super().create_model_instance(data)
        row.expire_date = datetime.fromtimestamp(began, UTC) + timedelta(seconds=settings.SESSION_COOKIE_AGE)
        return row


def end_all_of(user: User) -> None:
    """End the user's sessions. The user is only in the session data, so all live sessions (12 hours) are decoded."""
    rows = Session.objects.filter(expire_date__gt=datetime.now(UTC))
    ids = [row.pk for row in rows.iterator() if row.get_decoded().get(SESSION_KEY) == str(user.pk)]
    Session.objects.filter(pk__in=ids).delete()
