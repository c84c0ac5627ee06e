"""Users: administration, permission limits, and audit entries in the same transaction."""

from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.db import connection
from django.test import Client

from backoffice.templatetags.formatting import DASH
from exchange.audit import Action, ActorKind
from exchange.models import AuditEntry
from exchange.rules import MAX_REASON_LENGTH
from tests.backoffice import users
from tests.backoffice.admin_client import cells
from tests.backoffice.users import ADMINISTRATOR, OPERATOR, SUPERUSER, VIEWER

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("quick_passwords")]

PASSWORD = "quiet brown rivers"  # noqa: S105 (nobody's)
ADD = "/admin/auth/user/add/"


def change_of(user: User) -> str:
    return f"/admin/auth/user/{user.pk}/change/"


def removal_of(user: User) -> str:
    return f"/admin/auth/user/remove/?id={user.pk}"


def group(name: str) -> int:
    return int(Group.objects.get(name=name).pk)


def fields_of(user: User, **changed: Any) -> dict[str, Any]:
    """Return the form data of a user with these changes."""
    sent: dict[str, Any] = {
        "username": user.username,
        "first_name": user.first_name,
        "last_name": user.last_name,
        "email": user.email,
        "groups": list(user.groups.values_list("pk", flat=True)),
    }
    sent |= {"is_active": "on"} if user.is_active else {}
    return {name: value for name, value in (sent | changed).items() if value is not None}


def is_saved(answer: Any) -> bool:
    assert answer.status_code in (200, 302, 403)
    return bool(answer.status_code == 302)


def only_entry() -> AuditEntry:
    """Return the only audit entry."""
    return AuditEntry.objects.get()


def test_an_administrator_adds_a_user_who_can_log_in() -> None:
    browser = users.browser(ADMINISTRATOR)
    form = {"username": "vera", "password1": PASSWORD, "password2": PASSWORD, "groups": [group(VIEWER)]}
    assert is_saved(
        browser.post(ADD, form | {"first_name": "Vera", "reason": "new on the desk"}, REMOTE_ADDR="192.0.2.7")
    )

    vera = User.objects.get(username="vera")
    assert (vera.is_active, vera.is_staff, vera.is_superuser) == (True, True, False)
    entry = only_entry()
    assert (entry.actor_kind, entry.actor, entry.address) == (ActorKind.USER, ADMINISTRATOR, "192.0.2.7")
    assert (entry.action, entry.subject, entry.reason, entry.before) == (
        Action.USER_ADD,
        "vera",
        "new on the desk",
        None,
    )
    assert entry.after == {
        "username": "vera",
        "first_name": "Vera",
        "last_name": "",
        "email": "",
        "is_active": True,
        "is_staff": True,
        "is_superuser": False,
        "groups": [VIEWER],
        "permissions": [],
    }
    hers = Client()
    assert hers.post("/admin/login/", {"username": "vera", "password": PASSWORD}).status_code == 302
    assert hers.get("/admin/orders/order/").status_code == 200
    assert hers.get("/admin/auth/user/").status_code == 403


@pytest.mark.parametrize("password", ["short", "password1234", "administrator", "veraveravera"])
def test_a_weak_password_is_rejected(password: str) -> None:
    form = {"username": "veraveravera", "password1": password, "password2": password}
    assert not is_saved(users.browser(ADMINISTRATOR).post(ADD, form))
    assert not User.objects.filter(username="veraveravera").exists()
    assert not AuditEntry.objects.exists()


def test_a_change_records_before_and_after_of_the_changed_fields_only() -> None:
    user = users.user(VIEWER)
    browser = users.browser(ADMINISTRATOR)
    sent = fields_of(user, last_name="Vega", groups=[group(OPERATOR)], is_active=None, reason="moves on")
    assert is_saved(browser.post(change_of(user), sent))

    entry = only_entry()
    assert (entry.action, entry.subject, entry.reason) == (Action.USER_CHANGE, VIEWER, "moves on")
    assert entry.before == {"last_name": "", "is_active": True, "groups": [VIEWER]}
    assert entry.after == {"last_name": "Vega", "is_active": False, "groups": [OPERATOR]}
    assert is_saved(browser.post(change_of(user), fields_of(User.objects.get(pk=user.pk))))  # no change
    assert AuditEntry.objects.count() == 1


def test_a_deactivated_user_is_logged_out_immediately() -> None:
    user, theirs = users.user(VIEWER), users.browser(VIEWER)
    assert theirs.get("/admin/").status_code == 200
    users.browser(ADMINISTRATOR).post(change_of(user), fields_of(user, is_active=None))
    assert theirs.get("/admin/").status_code == 302


def test_a_removal_records_the_removed_user() -> None:
    user = users.user(VIEWER)
    browser = users.browser(ADMINISTRATOR)
    assert f'href="{removal_of(user)}"' in browser.get(change_of(user)).content.decode()
    assert browser.post(f"/admin/auth/user/{user.pk}/delete/", {"post": "yes"}).status_code == 403  # no reason
    answer = browser.post(removal_of(user), {"reason": "left"})
    assert (answer.status_code, answer.headers["Location"]) == (302, "/admin/auth/user/")
    assert browser.post(removal_of(user), {"reason": "left"}).status_code == 404
    assert not User.objects.filter(pk=user.pk).exists()
    entry = only_entry()
    assert (entry.action, entry.subject, entry.reason, entry.after) == (Action.USER_DELETE, VIEWER, "left", None)
    assert entry.before is not None
    assert entry.before["groups"] == [VIEWER]


def test_a_password_change_is_recorded_without_the_password() -> None:
    user = users.user(VIEWER)
    browser = users.browser(ADMINISTRATOR)
    path = f"/admin/auth/user/{user.pk}/password/"
    assert 'name="reason"' in browser.get(path).content.decode()
    assert not is_saved(browser.post(path, {"password1": PASSWORD, "password2": "another", "reason": "lost"}))
    assert not AuditEntry.objects.exists()
    assert is_saved(browser.post(path, {"password1": PASSWORD, "password2": PASSWORD, "reason": " lost "}))
    assert User.objects.get(pk=user.pk).check_password(PASSWORD)
    entry = only_entry()
    assert (entry.action, entry.actor, entry.subject) == (Action.USER_CHANGE, ADMINISTRATOR, VIEWER)
    assert entry.reason == "lost"
    assert (entry.before, entry.after) == (None, {"password": "changed"})


@pytest.mark.parametrize("reason", ["", " ", "\0", "x" * (MAX_REASON_LENGTH + 1)])
def test_a_removal_and_a_new_password_need_a_reason(reason: str) -> None:
    user = users.user(VIEWER)
    browser = users.browser(ADMINISTRATOR)
    before = User.objects.filter(pk=user.pk).values().get()
    new = {"password1": PASSWORD, "password2": PASSWORD}
    assert not is_saved(browser.post(removal_of(user), {"reason": reason}))
    assert not is_saved(browser.post(f"/admin/auth/user/{user.pk}/password/", new | {"reason": reason}))
    assert User.objects.filter(pk=user.pk).values().get() == before
    assert not AuditEntry.objects.exists()


def test_a_change_of_the_own_password_is_recorded() -> None:
    users.user(VIEWER, "vera", password=PASSWORD)
    browser = users.browser(VIEWER, "vera")
    new = "loud green mountains"
    form = {"old_password": "wrong", "new_password1": new, "new_password2": new}
    assert not is_saved(browser.post("/admin/password_change/", form))
    assert not AuditEntry.objects.exists()
    assert is_saved(browser.post("/admin/password_change/", form | {"old_password": PASSWORD}))
    entry = only_entry()
    assert (entry.action, entry.actor, entry.subject) == (Action.USER_CHANGE, "vera", "vera")
    assert (entry.before, entry.after) == (None, {"password": "changed"})
    assert browser.get("/admin/").status_code == 200


# --- Permission limits ----------------------------------------------------------------------------------------------

EVERYTHING = {"is_superuser": "on", "is_staff": "on"}


def test_an_administrator_cannot_grant_superuser_status_or_single_permissions() -> None:
    user = users.user(VIEWER)
    browser = users.browser(ADMINISTRATOR)
    powers = EVERYTHING | {"user_permissions": list(Permission.objects.values_list("pk", flat=True)[:3])}
    assert is_saved(browser.post(change_of(user), fields_of(user, **powers)))
    form = {"username": "new", "password1": PASSWORD, "password2": PASSWORD}
    assert is_saved(browser.post(ADD, form | powers))
    for each in User.objects.filter(username__in=[VIEWER, "new"]):
        assert (each.is_superuser, each.user_permissions.count()) == (False, 0)
    for page in (ADD, change_of(user)):
        assert not {'name="is_superuser"', 'name="user_permissions"'} & set(browser.get(page).content.decode().split())


def test_an_administrator_cannot_change_superusers() -> None:
    root = users.user(SUPERUSER)
    browser = users.browser(ADMINISTRATOR)
    before = list(User.objects.order_by("pk").values())
    assert browser.get(change_of(root)).status_code == 200  # read-only
    for path, form in {
        change_of(root): fields_of(root, is_active=None),
        removal_of(root): {"reason": "x"},
        f"/admin/auth/user/{root.pk}/password/": {"password1": PASSWORD, "password2": PASSWORD, "reason": "x"},
    }.items():
        assert browser.post(path, form).status_code == 403, path
    action = {"action": "delete_selected", "_selected_action": [root.pk], "post": "yes"}
    browser.post("/admin/auth/user/", action)
    assert list(User.objects.order_by("pk").values()) == before
    assert not AuditEntry.objects.exists()


def test_a_superuser_can_grant_superuser_status() -> None:
    user = users.user(VIEWER)
    assert is_saved(users.browser(SUPERUSER).post(change_of(user), fields_of(user, **EVERYTHING)))
    entry = only_entry()
    assert (entry.before, entry.after) == ({"is_superuser": False}, {"is_superuser": True})


@pytest.mark.parametrize("role", [ADMINISTRATOR, SUPERUSER])
def test_users_cannot_change_their_own_permissions_or_remove_themselves(role: str) -> None:
    user, browser = users.user(role), users.browser(role)
    rights = {"is_active": None, "groups": [group(VIEWER)], "is_superuser": "on", "is_staff": None}
    assert is_saved(browser.post(change_of(user), fields_of(user, **rights, first_name="Ada")))
    entry = only_entry()
    assert (entry.before, entry.after) == ({"first_name": ""}, {"first_name": "Ada"})
    assert removal_of(user) not in browser.get(change_of(user)).content.decode()
    assert browser.post(removal_of(user), {"reason": "x"}).status_code == 403
    assert [each.name for each in User.objects.get(pk=user.pk).groups.all()] == [role] * (role == ADMINISTRATOR)


def test_password_hashes_are_never_shown() -> None:
    user = users.user(VIEWER, "vera", password=PASSWORD)
    root = users.user(SUPERUSER, "root", password=PASSWORD)
    browser = users.browser(ADMINISTRATOR)
    for each in (user, root):
        assert "algorithm" not in browser.get(change_of(each)).content.decode()
    assert browser.get("/admin/auth/user/?password__startswith=md5").status_code in (302, 400)


def test_a_change_and_its_audit_entry_are_atomic(transactional_db: None) -> None:
    """If the database rejects the entry, as with a full disk, the change is rolled back."""
    user = users.user(VIEWER)
    browser = users.browser(ADMINISTRATOR)
    browser.raise_request_exception = False
    paths = {
        change_of(user): fields_of(user, first_name="Vera"),
        ADD: {"username": "new", "password1": PASSWORD, "password2": PASSWORD},
        removal_of(user): {"reason": "x"},
        f"/admin/auth/user/{user.pk}/password/": {"password1": PASSWORD, "password2": PASSWORD, "reason": "x"},
    }
    before = list(User.objects.order_by("pk").values())
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE exchange_auditentry ADD CONSTRAINT refuses CHECK (false) NOT VALID")
        try:
            statuses = {path: browser.post(path, form).status_code for path, form in paths.items()}
        finally:
            cursor.execute("ALTER TABLE exchange_auditentry DROP CONSTRAINT refuses")
    assert set(statuses.values()) == {500}, statuses
    assert list(User.objects.order_by("pk").values()) == before


def test_the_list_shows_the_groups_in_few_queries(django_assert_max_num_queries: Any) -> None:
    for number in range(30):
        users.user(VIEWER, f"viewer-{number}")
    browser = users.browser(ADMINISTRATOR)
    with django_assert_max_num_queries(20):
        page = browser.get("/admin/auth/user/", {"q": "viewer-2"}).content.decode()
    assert "viewer-29" in page
    assert "viewer-10" not in page


@pytest.mark.parametrize(
    "filters",
    [
        "date_joined__year=99999999",
        "id__range=1",
        "username__trigram_similar=a",
        "username__regex=(",
        "password__startswith=md5",
        "groups__name=a",
        "groups__id__exact=abc",
        "groups__id__exact=99999999999999999999",
        "groups__isnull=zzz",
        "is_active__exact=zzz",
        "is_superuser__exact=%00",
    ],
)
def test_the_list_accepts_its_own_filters_only(filters: str) -> None:
    assert users.browser(ADMINISTRATOR).get(f"/admin/auth/user/?{filters}").status_code in (200, 302, 400)


def test_the_pages_have_the_formats_of_the_other_pages() -> None:
    vera, gone = users.user(VIEWER, "vera"), users.user(VIEWER, "gone")
    at = datetime(2020, 2, 3, 4, 5, 6, 789_999, tzinfo=UTC)
    User.objects.filter(pk=vera.pk).update(last_login=at, date_joined=at)
    User.objects.filter(pk=gone.pk).update(is_active=False)
    browser = users.browser(ADMINISTRATOR)

    response: Any = browser.get("/admin/auth/user/?q=e")  # both users
    page = browser.get(change_of(vera)).content.decode()

    time = f'<time datetime="{at.isoformat()}" title="{at.isoformat()}">2020-02-03 04:05:06.789 UTC</time>'
    assert cells(response)[-2:] == [
        ["gone", '<span class="o-state o-plain">inactive</span>', DASH, VIEWER, "no", DASH],
        ["vera", '<span class="o-state o-good">active</span>', DASH, VIEWER, "no", time],
    ]
    assert page.count(time) == 2
    assert '<span class="truncate">User vera</span>' in page
    assert [name for name in ("_save", "_continue", "_addanother") if f'name="{name}"' in page] == ["_save"]
    assert f'<a class="o-button" href="{ADD}">Add user</a>' in response.content.decode()


def test_the_list_is_filtered_by_group_and_status() -> None:
    browser = users.browser(ADMINISTRATOR)
    users.user(VIEWER)
    users.user(SUPERUSER)
    away = users.user(OPERATOR)
    User.objects.filter(pk=away.pk).update(is_active=False)

    def found(filters: str) -> list[str]:
        return [user.username for user in browser.get(f"/admin/auth/user/?{filters}").context["cl"].result_list]

    assert found("") == [ADMINISTRATOR, OPERATOR, SUPERUSER, VIEWER]
    assert found("groups__isnull=True") == [SUPERUSER]
    assert found(f"groups__id__exact={group(VIEWER)}") == [VIEWER]
    assert found("is_active__exact=0") == [OPERATOR]
    assert found("is_superuser__exact=0&is_active__exact=1") == [ADMINISTRATOR, VIEWER]
