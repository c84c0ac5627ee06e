"""Every page of the back office, as its own site knows them, about rows that the database has.

What is listed in the site's registry is here by itself: lists, pages of rows, acts, and whatever else has a URL.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.admin import ModelAdmin
from django.db.models import Model
from django.urls import URLPattern, URLResolver, reverse

from backoffice.acts import Act
from backoffice.pages import Pages

# URLs that lead away, answer scripts, or give files; and those of Django's forms, where acts take their place.
NO_PAGES = re.compile("logout|jsi18n|autocomplete|view_on_site|search|.*_export")
OFF = ("_add", "_history", "_delete")
LOOKED_AT = 500  # rows, for one that an act can be done to

Chosen = Callable[[type[Model]], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class OfficePage:
    """A page: what it is called, where it is."""

    name: str
    path: str


def newest(model: type[Model]) -> Sequence[Any]:
    """The rows that pages are about, the best first."""
    return list(model._default_manager.order_by("-pk")[:LOOKED_AT])


def pages(rows: Chosen = newest) -> list[OfficePage]:
    """All of them; what there is no row for is left out."""
    found = [page for name, arguments in _urls(admin.site.get_urls()) for page in _page(name, arguments, rows)]
    return sorted(found, key=lambda page: page.name)


def _urls(patterns: Sequence[URLPattern | URLResolver]) -> Iterator[tuple[str, int]]:
    """The names of all URLs of the site, and how many arguments each has."""
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            yield from _urls(pattern.url_patterns)
        elif pattern.name and not NO_PAGES.fullmatch(pattern.name):
            route: Any = pattern.pattern
            yield pattern.name, route.regex.groups


def _page(name: str, arguments: int, rows: Chosen) -> Iterator[OfficePage]:
    if name == "app_list":
        for app in sorted({model._meta.app_label for model in registry()}):
            yield OfficePage(f"app-{app}", reverse("admin:app_list", args=[app]))
        return
    owner = _owner(name)
    if owner is not None and _is_off(owner, name):
        return
    title = "dashboard" if name == "index" else name.replace("_", "-")
    acts = {} if owner is None else _acts(owner)
    if name in acts:
        yield from _act_page(title, name, acts[name], owner, rows)
    elif not arguments:
        yield OfficePage(title, reverse(f"admin:{name}"))
    elif arguments == 1 and owner is not None:
        for row in rows(owner.model)[:1]:
            yield OfficePage(title, reverse(f"admin:{name}", args=[row.pk]))


def _owner(name: str) -> "ModelAdmin[Any] | None":
    """Whose page it is: the model with the longest name that this one begins with."""
    owned = {f"{model._meta.app_label}_{model._meta.model_name}_": owner for model, owner in registry().items()}
    fitting = [prefix for prefix in owned if name.startswith(prefix)]
    return owned[max(fitting, key=len)] if fitting else None


def registry() -> Mapping[type[Model], "ModelAdmin[Any]"]:
    return admin.site._registry


def _is_off(owner: "ModelAdmin[Any]", name: str) -> bool:
    """Django's forms, where acts take their place."""
    return isinstance(owner, Pages) and name.endswith(OFF)


def _acts(owner: "ModelAdmin[Any]") -> dict[str, Act]:
    prefix = f"{owner.opts.app_label}_{owner.opts.model_name}"
    acts = [act for act in getattr(owner, "acts", ()) if isinstance(act, Act)]
    return {f"{prefix}_{act.name.replace('-', '_')}": act for act in acts}


def _act_page(title: str, name: str, act: Act, owner: "ModelAdmin[Any] | None", rows: Chosen) -> Iterator[OfficePage]:
    path = reverse(f"admin:{name}")
    if not act.subjects_max:
        yield OfficePage(title, path)
        return
    assert owner is not None
    subjects = [row for row in rows(owner.model) if act.applies_to(row)][: min(act.subjects_max, 2)]
    if subjects:
        yield OfficePage(title, f"{path}?{urlencode([('id', subject.pk) for subject in subjects])}")
