"""The back office as its users' browsers see it: who is signed in, which rows a list shows, what came of an action."""

import re
from typing import Any

from django.contrib.auth.models import Permission, User
from django.db.models import Model
from django.test import Client

from backoffice.links import list_url, page_url

REASON = "as agreed by telephone"
ADDRESS = "127.0.0.1"  # of Django's client


def sign_in(client: Client, name: str = "root", permissions: list[str] | None = None) -> Client:
    """A superuser's browser, or that of a user who may do just this."""
    user = User.objects.create(username=name, is_staff=True, is_superuser=permissions is None)
    for each in permissions or []:
        app, _, codename = each.partition(".")
        user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
    client.force_login(user)
    return client


def shown(client: Client, model: type[Model], **asked: Any) -> list[Any]:
    """The rows that a list shows."""
    response: Any = client.get(list_url(model, **asked))
    assert response.status_code == 200
    if listing := response.context.get("listing"):
        assert listing.form.errors == {}
    return rows(response)


def rows(response: Any) -> list[Any]:
    """The rows of a list, Django's or one by keyset."""
    listing = response.context.get("listing")
    return list(listing.page.rows if listing else response.context["cl"].result_list)


def cells(response: Any) -> list[list[str]]:
    """The columns of each row that Django's list shows."""
    changelist = response.context["cl"]
    return [[str(column(row)) for column in changelist.list_display if callable(column)] for row in rows(response)]


def action_path(model: type[Model], action: str, *rows: Any) -> str:
    """The page of an action on these rows."""
    return f"{list_url(model)}{action}/" + ("?" + "&".join(f"id={row}" for row in rows) if rows else "")


def do(client: Client, model: type[Model], action: str, *rows: Any, **fields: Any) -> Any:
    """Fill in an action's form, with a reason unless told otherwise, and press its button; the page after that."""
    return client.post(action_path(model, action, *rows), {"reason": REASON} | fields, follow=True)


def said(response: Any) -> list[tuple[str, str]]:
    """What an action that was done says, and how."""
    assert response.redirect_chain, wrong(response)
    return [(message.level_tag, message.message) for message in response.context["messages"]]


def wrong(response: Any) -> dict[str, list[str]]:
    """What a form that was refused says of each field; `__all__`: of the whole."""
    assert response.status_code == 200
    found = {name: [str(each) for each in errors] for name, errors in response.context["form"].errors.items()}
    assert all(error in response.content.decode().replace("&#x27;", "'") for each in found.values() for error in each)
    return found


def is_offered(client: Client, path_of_act: str, page: str) -> bool:
    """Whether a page has the action's button."""
    response = client.get(page)
    assert response.status_code == 200
    return f'href="{path_of_act}"' in response.content.decode()


def live_parts(response: Any) -> list[str]:
    """What of a page refreshes by itself."""
    return re.findall(r'id="(\w+)"[^>]*data-live', response.content.decode())


def page(row: Model) -> str:
    return page_url(type(row), row.pk)
