"""Where the back office keeps its sessions: Django's table, with an end that does not move.

Django counts a session's age from the last time something was written into it. Here it counts from the login, so that
a browser that is never closed asks for the password again within `SESSION_COOKIE_AGE`.
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
        """A login begins it again; a second factor or a new password, which give it a new key too, do not."""
        if SESSION_KEY not in self:
            self.pop(BEGAN, None)
        super().cycle_key()

    def create_model_instance(self, data: dict[str, Any]) -> AbstractBaseSession:
        began = data.setdefault(BEGAN, datetime.now(UTC).timestamp())
        row = super().create_model_instance(data)
        row.expire_date = datetime.fromtimestamp(began, UTC) + timedelta(seconds=settings.SESSION_COOKIE_AGE)
        return row


def end_all_of(user: User) -> None:
    """End the user's sessions. A row tells whose it is in its data alone: all are read, those of half a day at most."""
    rows = Session.objects.filter(expire_date__gt=datetime.now(UTC))
    theirs = [row.pk for row in rows.iterator() if row.get_decoded().get(SESSION_KEY) == str(user.pk)]
    Session.objects.filter(pk__in=theirs).delete()
