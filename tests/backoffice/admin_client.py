"""Helpers to use the back office through Django's test client."""

import re
from typing import Any

from django.contrib.auth.models import Permission, User
from django.db.models import Model
from django.test import Client

from backoffice.links import list_url, page_url

REASON = "as agreed by telephone"
ADDRESS = "127.0.0.1"  # of Django's test client


def sign_in(client: Client, name: str = "root", permissions: list[str] | None = None) -> Client:
    """Sign in a superuser or, with `permissions`, a user with only these."""
    user = User.objects.create(username=name, is_staff=True, is_superuser=permissions is None)
    for each in permissions or []:
        app, _, codename = each.partition(".")
        user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
    client.force_login(user)
    return client


def listed_rows(client: Client, model: type[Model], **filters: Any) -> list[Any]:
    """Return the rows of a list with these filters."""
    response: Any = client.get(list_url(model, **filters))
    assert response.status_code == 200
    if listing := response.context.get("listing"):
        assert listing.form.errors == {}
    return rows(response)


def rows(response: Any) -> list[Any]:
    """Return the rows of a changelist or of a keyset list."""
    listing = response.context.get("listing")
    return list(listing.page.rows if listing else response.context["cl"].result_list)


def cells(response: Any) -> list[list[str]]:
    """Return the cells of each row of a changelist."""
    changelist = response.context["cl"]
    return [[str(column(row)) for column in changelist.list_display if callable(column)] for row in rows(response)]


def action_path(model: type[Model], action: str, *rows: Any) -> str:
    """Return the URL of an action on these rows."""
    return f"{list_url(model)}{action}/" + ("?" + "&".join(f"id={row}" for row in rows) if rows else "")


def perform(client: Client, model: type[Model], action: str, *rows: Any, **fields: Any) -> Any:
    """Submit an action's form, with a default reason, confirm its changes, and follow the redirect."""
    path, values = action_path(model, action, *rows), {"reason": REASON} | fields
    response: Any = client.post(path, values, follow=True)
    if response.context and response.context.get("digest"):
        return client.post(path, values | {"confirmed": response.context["digest"]}, follow=True)
    return response


def impact(response: Any, name: str = "impact") -> list[list[str]]:
    """Return the rows of a table of an action's page: `impact` or `changes`."""
    assert response.status_code == 200
    content = " ".join(response.content.decode().split())
    table = response.context[name]
    (rows,) = re.findall(rf"<h2>{re.escape(table.title)}</h2>.*?<tbody>(.*?)</tbody>", content)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows.split("</tr>")[:-1]]


def result_messages(response: Any) -> list[tuple[str, str]]:
    """Return the levels and texts of the messages after a successful action."""
    assert response.redirect_chain, form_errors(response)
    return [(message.level_tag, message.message) for message in response.context["messages"]]


def form_errors(response: Any) -> dict[str, list[str]]:
    """Return the errors of a rejected form by field. `__all__` is the form as a whole."""
    assert response.status_code == 200
    found = {name: [str(each) for each in errors] for name, errors in response.context["form"].errors.items()}
    assert all(error in response.content.decode().replace("&#x27;", "'") for each in found.values() for error in each)
    return found


def has_button(client: Client, path_of_act: str, page: str) -> bool:
    """True if a page has the action's button."""
    response = client.get(page)
    assert response.status_code == 200
    return f'href="{path_of_act}"' in response.content.decode()


def live_parts(response: Any) -> list[str]:
    """Return the ids of the elements that refresh automatically."""
    return re.findall(r'id="(\w+)"[^>]*data-live', response.content.decode())


def page(row: Model) -> str:
    return page_url(type(row), row.pk)
