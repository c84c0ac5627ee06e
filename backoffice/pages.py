"""A model's pages in the back office: the list of its rows, a page for each, and what can be done to them.

Django's forms to add, change and delete are off: nothing here writes a row, acts do.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from unfold.admin import ModelAdmin

from backoffice import acts, exports, lists
from backoffice.acts import Act
from backoffice.links import list_url
from backoffice.lists import Column, FilterForm, Way
from exchange.models import AuditEntry


class Pages(ModelAdmin):  # type: ignore[misc]  # unfold is not typed
    """List, look, act."""

    columns: ClassVar[Sequence[Column]]
    form_class: ClassVar[type[FilterForm]] = FilterForm
    acts: ClassVar[Sequence[Act]] = ()
    list_template: ClassVar[str] = "backoffice/list.html"
    row_template: ClassVar[str] = "backoffice/row.html"
    is_live: ClassVar[bool] = False  # the list refreshes by itself
    export_columns: ClassVar[Mapping[str, str]] = {}  # of the list as a file, if it can be one: title and field

    def way(self, asked: dict[str, Any]) -> Way:
        """How to read the rows that the filters, checked, ask for."""
        raise NotImplementedError

    def complete(self, rows: list[Any]) -> None:
        """Read what the columns need beside the rows, at once for all that a page shows."""

    def row_context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """What the page of a row shows beside its fields."""
        return {}

    def list_context(self, request: HttpRequest) -> dict[str, Any]:
        """What the list shows beside its rows."""
        return {}

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        own = [
            path(
                f"{act.name}/",
                self.admin_site.admin_view(partial(self.act_view, act=act)),
                name=f"{name}_{act.name.replace('-', '_')}",
            )
            for act in self.acts
        ]
        if self.export_columns:
            own.append(path("export/", self.admin_site.admin_view(self.export_view), name=f"{name}_export"))
        return [*own, *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        self._require_view(request)
        listing = lists.listing(request, self.columns, self.form_class, self.way)
        self.complete(listing.page.rows)
        many = [act for act in self._permitted(request) if act.subjects_max > 1]
        return TemplateResponse(
            request,
            self.list_template,
            {
                **self._context(request),
                "title": str(self.opts.verbose_name_plural).capitalize(),
                "listing": listing,
                "is_live": self.is_live,
                "export_url": self._export_url(listing),
                "acts_on_many": [(act, acts.act_url(self.model, act)) for act in many],
                "selectable": {row.pk for row in listing.page.rows if any(act.applies_to(row) for act in many)},
                "acts_on_none": [
                    (act, acts.act_url(self.model, act)) for act in self._permitted(request) if not act.subjects_max
                ],
                **self.list_context(request),
            },
        )

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        self._require_view(request)
        row = self._row(object_id)
        buttons = [act for act in self._permitted(request) if act.subjects_max and act.applies_to(row)]
        return TemplateResponse(
            request,
            self.row_template,
            {
                **self._context(request),
                "title": f"{str(self.opts.verbose_name).capitalize()} {row}",
                "row": row,
                "acts": [(act, acts.act_url(self.model, act, row)) for act in buttons],
                **self.row_context(request, row),
            },
        )

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """What was done to a row is in the audit; Django's own record is not kept."""
        self._require_view(request)
        return HttpResponseRedirect(list_url(AuditEntry, q=self._row(object_id).pk))

    def export_view(self, request: HttpRequest) -> HttpResponseBase:
        """What the filters ask for, as a file; with bad ones, the list, which says what is wrong with them."""
        self._require_view(request)
        form = self.form_class(request.GET)
        if not form.is_valid():
            return HttpResponseRedirect(f"{self._url('changelist')}?{request.GET.urlencode()}")
        name = str(self.opts.verbose_name_plural).replace(" ", "-")
        return exports.csv_answer(name, self.export_columns, self.way(form.cleaned_data))

    def _export_url(self, listing: lists.Listing) -> str:
        can_be = self.export_columns and listing.form.is_valid()
        return f"{self._url('export')}?{listing.query_string}" if can_be else ""

    def _url(self, name: str) -> str:
        return reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_{name}")

    def act_view(self, request: HttpRequest, act: Act) -> HttpResponse:
        return acts.act_page(request, act, self.model, self._context(request))

    def _permitted(self, request: HttpRequest) -> list[Act]:
        return [act for act in self.acts if acts.is_permitted(request, act)]

    def _require_view(self, request: HttpRequest) -> None:
        if not self.has_view_permission(request):
            raise PermissionDenied

    def _row(self, object_id: str) -> Any:
        try:
            row = None if "\0" in object_id else self.get_queryset(None).filter(pk=unquote(object_id)).first()
        except (ValueError, ValidationError):
            row = None
        if row is None:
            raise Http404
        return row

    def _context(self, request: HttpRequest) -> dict[str, Any]:
        request.current_app = self.admin_site.name
        return {**self.admin_site.each_context(request), "opts": self.opts}

    def get_queryset(self, request: HttpRequest | None) -> Any:
        return self.model._default_manager.all()
