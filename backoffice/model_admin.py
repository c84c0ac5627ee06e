"""Base classes of the model admins: a list, a page for each row, and operator actions.

Django's forms to add, change and delete rows are off: only operator actions write. `backoffice.lists` explains the two
kinds of lists.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from django.contrib.admin import SimpleListFilter
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import ERROR_FLAG, IGNORED_PARAMS, PAGE_VAR
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Model, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from unfold.admin import ModelAdmin

from backoffice import error_pages, exports, lists, operator_actions
from backoffice.links import list_url
from backoffice.lists import FilterForm, KeysetQuery
from backoffice.operator_actions import ActionButton, OperatorAction, action_button
from exchange.models import AuditEntry

_DJANGO_PARAMETERS = {*IGNORED_PARAMS, PAGE_VAR}


class ConditionFilter(SimpleListFilter):
    """Filter of `list_filter` that selects one of several named conditions."""

    conditions: Callable[[], Mapping[str, Q]]

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, name) for name in self.conditions()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen, conditions = self.value(), self.conditions()
        condition = Q() if chosen is None else conditions.get(chosen, Q(pk=None))  # unknown names match nothing
        return queryset.filter(condition)


class OperatorActionsAdmin(ModelAdmin):  # type: ignore[misc]  # unfold is not typed
    """Model admin with a page for each operator action."""

    operator_actions: ClassVar[Sequence[OperatorAction]] = ()

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        own = [
            path(
                f"{action.name}/",
                self.admin_site.admin_view(partial(self.action_view, action=action)),
                name=f"{name}_{action.name.replace('-', '_')}",
            )
            for action in self.operator_actions
        ]
        return [*own, *super().get_urls()]

    def action_view(self, request: HttpRequest, action: OperatorAction) -> HttpResponse:
        return operator_actions.action_page(request, action, self.model, self._context(request))

    def action_buttons(self, request: HttpRequest, row: Any = None) -> list[ActionButton]:
        """Return the actions on this row, or on no row in particular, that the user may perform."""
        permitted = self._permitted_actions(request)
        if row is None:
            return [action_button(self.model, action) for action in permitted if not action.max_subjects]
        own = [each for each in permitted if each.max_subjects and each.is_allowed_for(request, row)]
        return [action_button(self.model, action, row) for action in own if action.applies_to(row)]

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Return the operator actions on several rows, for Django's changelist."""
        return {
            action.name: (partial(operator_actions.open_for_selection, action), action.name, self._bulk_label(action))
            for action in self._bulk_actions(request)
        }

    def unknown_filters(self, request: HttpRequest) -> HttpResponse | None:
        """Return an error page if the URL of the list has filters that it would ignore, and show too many rows."""
        names = [name for name in request.GET if name not in _DJANGO_PARAMETERS and not self.lookup_allowed(name, "")]
        if names == [ERROR_FLAG]:  # Django's redirect from an invalid value
            return error_pages.invalid_filter(request, self.model, "A filter in the URL has an invalid value.")
        if names:
            return error_pages.invalid_filter(request, self.model, f"Unknown filter in the URL: {', '.join(names)}.")
        return None

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        return self.unknown_filters(request) or super().changelist_view(request, extra_context)

    def _permitted_actions(self, request: HttpRequest) -> list[OperatorAction]:
        return [action for action in self.operator_actions if operator_actions.is_permitted(request, action)]

    def _bulk_actions(self, request: HttpRequest) -> list[OperatorAction]:
        return [action for action in self._permitted_actions(request) if action.max_subjects > 1]

    def _bulk_label(self, action: OperatorAction) -> str:
        return f"{action.label} selected {self.opts.verbose_name_plural}"

    def _context(self, request: HttpRequest) -> dict[str, Any]:
        request.current_app = self.admin_site.name
        return {**self.admin_site.each_context(request), "opts": self.opts}


class ExchangeModelAdmin(OperatorActionsAdmin):
    """Read-only list and pages of a model, with operator actions."""

    row_template: ClassVar[str] = "backoffice/row.html"
    is_live: ClassVar[bool] = False  # the list refreshes automatically
    list_before_template = "backoffice/action_buttons.html"
    list_disable_select_all = True  # actions are limited to `MAX_SUBJECTS` rows
    list_per_page = lists.PAGE_ROWS
    preserve_filters = False
    show_full_result_count = False

    def row_context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """Return the template context of a row's page, besides the row."""
        return {}

    def list_context(self, request: HttpRequest) -> dict[str, Any]:
        """Return the template context of the list, besides its rows."""
        return {}

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """True for the filters and the broker. By default, Django would also allow `secret_hash__startswith`."""
        allowed = {"broker", *(getattr(each, "parameter_name", each) for each in self.list_filter)}
        return lookup.removesuffix("__exact") in allowed and "\0" not in value

    def search(self, request: HttpRequest, term: str, limit: int) -> Sequence[Any]:
        """Return the first rows that the list's search finds, an exact match first."""
        rows = self.get_queryset(request).alias(is_exact=Q(pk__iexact=term)).order_by("-is_exact", *self.ordering)
        return list(self.get_search_results(request, rows, term)[0][:limit])

    def summary(self, row: Any) -> str:
        """Describe a row in the global search."""
        return str(self.opts.verbose_name)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        context = {
            "title": str(self.opts.verbose_name_plural).capitalize(),
            "is_live": self.is_live,
            "action_buttons": self.action_buttons(request),
            **self.list_context(request),
        }
        response: HttpResponse = super().changelist_view(request, context)
        return response

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        self._require_view(request)
        row = self._row(object_id)
        return TemplateResponse(
            request,
            self.row_template,
            {
                **self._context(request),
                "title": f"{str(self.opts.verbose_name).capitalize()} {row}",
                "row": row,
                "action_buttons": self.action_buttons(request, row),
                **self.row_context(request, row),
            },
        )

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Redirect to the row's audit entries. Django's own history is not kept."""
        self._require_view(request)
        return HttpResponseRedirect(list_url(AuditEntry, q=self._row(object_id).pk))

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

    def get_queryset(self, request: HttpRequest | None) -> Any:
        return self.model._default_manager.all()


class KeysetModelAdmin(ExchangeModelAdmin):
    """Model admin of a table that grows without limit, with a keyset list."""

    form_class: ClassVar[type[FilterForm]] = FilterForm
    export_columns: ClassVar[Mapping[str, str]] = {}  # columns of the CSV export, if there is one: title and field

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        return lookup in self.form_class.base_fields or lookup in lists.PageForm.base_fields

    def keyset_query(self, filters: dict[str, Any]) -> KeysetQuery:
        """Return the query for the validated filters."""
        raise NotImplementedError

    def search(self, request: HttpRequest, term: str, limit: int) -> Sequence[Any]:
        """Return the first rows that the list's search finds."""
        form = self.form_class({"q": term})
        return lists.read_page(self.keyset_query(form.cleaned_data), {}).rows[:limit] if form.is_valid() else []

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_export"
        export = path("export/", self.admin_site.admin_view(self.export_view), name=name)
        return [export, *super().get_urls()] if self.export_columns else super().get_urls()

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        self._require_view(request)
        if error := self.unknown_filters(request):
            return error
        listing = lists.build_listing(request, self.list_display, self.form_class, self.keyset_query)
        bulk = self._bulk_actions(request)
        return TemplateResponse(
            request,
            "backoffice/list.html",
            {
                **self._context(request),
                "title": str(self.opts.verbose_name_plural).capitalize(),
                "listing": listing,
                "is_live": self.is_live,
                "export_url": self._export_url(listing),
                "bulk_actions": [self._bulk_button(action) for action in bulk],
                "selectable": {row.pk for row in listing.page.rows if any(action.applies_to(row) for action in bulk)},
            },
        )

    def export_view(self, request: HttpRequest) -> HttpResponseBase:
        """Export the filtered rows as CSV. With invalid filters, redirect to the list, which shows the errors."""
        self._require_view(request)
        if error := self.unknown_filters(request):
            return error
        form = self.form_class(request.GET)
        if not form.is_valid():
            return HttpResponseRedirect(f"{list_url(self.model)}?{request.GET.urlencode()}")
        name = str(self.opts.verbose_name_plural).replace(" ", "-")
        query, by = self.keyset_query(form.cleaned_data), operator_actions.actor_of(request)
        return exports.csv_response(name, self.export_columns, query, by, lists.sent_filters(form))

    def _bulk_button(self, action: OperatorAction) -> ActionButton:
        url = operator_actions.action_url(self.model, action)
        return ActionButton(self._bulk_label(action), url, action.is_dangerous)

    def _export_url(self, listing: lists.Listing) -> str:
        if not self.export_columns or not listing.form.is_valid():
            return ""
        return f"{reverse(f'admin:{self.opts.app_label}_{self.opts.model_name}_export')}?{listing.query_string}"
