"""Users of the back office and their permissions.

Administrators add users and assign groups. Only superusers create and change superusers, and no user can change their
own permissions. Every change is recorded in the audit log, in the same transaction.
"""

from collections.abc import Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import Group, User
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django_otp.plugins.otp_static.admin import StaticDevice
from django_otp.plugins.otp_totp.admin import TOTPDevice
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget, UnfoldAdminTextInputWidget

from backoffice import two_factor
from backoffice.links import list_url
from backoffice.lists import column
from backoffice.model_admin import OperatorActionsAdmin
from backoffice.operator_actions import ActionButton, ActionResult, OperatorAction, actor_of
from backoffice.templatetags.formatting import status_pill
from exchange import audit
from exchange.audit import Action, Actor, Entry
from exchange.models import AuditEntry
from exchange.rules import MAX_REASON_LENGTH

for model in (Group, User, TOTPDevice, StaticDevice):  # Django's pages write no audit entry and show secrets
    admin.site.unregister(model)

RIGHTS = ("is_active", "is_staff", "is_superuser", "groups")
_AUDITED_FIELDS = ("username", "first_name", "last_name", "email", "is_active", "is_staff", "is_superuser")


def audit_fields(user: User) -> dict[str, Any]:
    """Return a user's fields for the audit log: all but the password."""
    permissions = user.user_permissions.select_related("content_type")
    return {
        **{name: getattr(user, name) for name in _AUDITED_FIELDS},
        "groups": sorted(user.groups.values_list("name", flat=True)),
        "permissions": sorted(f"{each.content_type.app_label}.{each.codename}" for each in permissions),
    }


class ResetTwoFactor(OperatorAction):
    name = "reset-second-factor"
    label = "Reset second factor"
    label_format = "Reset second factor of {}"
    explanation = (
        "The authenticator and the recovery codes stop working, and all sessions of the user end. Verify the identity "
        "of the person who requests this: until a new second factor is set up, the password alone is enough to log in."
    )
    permission = "auth.change_user"
    is_dangerous = True

    def applies_to(self, row: User) -> bool:
        return two_factor.has_device(row)

    def is_allowed_for(self, request: HttpRequest, row: User) -> bool:
        return _may_manage(request, row)

    def perform(self, by: Actor, subjects: Sequence[User], **fields: Any) -> ActionResult:
        (user,) = subjects
        if two_factor.reset(user, by=by, reason=fields["reason"]):
            return ActionResult(f"Second factor of {user} reset.")
        return ActionResult(f"{user} has no second factor. Nothing was changed.", is_warning=True)


class RemoveUser(OperatorAction):
    name = "remove"
    label = "Remove"
    explanation = (
        "The user is logged out immediately and can no longer log in. Their entries stay in the audit log. To block a "
        "user temporarily, clear “Active” instead."
    )
    permission = "auth.delete_user"
    is_dangerous = True

    def is_allowed_for(self, request: HttpRequest, row: User) -> bool:
        return _may_manage(request, row) and row != request.user

    def perform(self, by: Actor, subjects: Sequence[User], **fields: Any) -> ActionResult:
        with transaction.atomic():
            user = get_object_or_404(User.objects.select_for_update(), pk=subjects[0].pk)
            before = audit_fields(user)
            user.delete()
            audit.record(Entry.of(by, Action.USER_DELETE, before["username"], reason=fields["reason"], before=before))
        return ActionResult(f"User {user} removed.", url=list_url(User))


def _reason_field(*, required: bool) -> forms.CharField:
    return forms.CharField(
        max_length=MAX_REASON_LENGTH,
        required=required,
        help_text="Recorded in the audit log.",
        widget=UnfoldAdminTextInputWidget,
    )


class _OptionalReasonForm(forms.Form):
    reason = _reason_field(required=False)


class NewUserForm(_OptionalReasonForm, UserCreationForm):  # type: ignore[misc]  # unfold is not typed
    pass


class UserForm(_OptionalReasonForm, UserChangeForm):  # type: ignore[misc]  # as above
    pass


class PasswordForm(AdminPasswordChangeForm):  # type: ignore[misc]  # as above
    reason = _reason_field(required=True)


def _group_names(user: User) -> str:
    groups = ["superuser"] if user.is_superuser else sorted(group.name for group in user.groups.all())
    return ", ".join(groups) or "none"


_LAST_LOGIN, _ADDED = column("Last login", "last_login"), column("Added", "date_joined")


@admin.register(User)
class BackOfficeUserAdmin(UserAdmin, OperatorActionsAdmin):  # type: ignore[type-arg]  # Django takes no parameters
    form = UserForm
    add_form = NewUserForm
    change_password_form = PasswordForm
    operator_actions = (ResetTwoFactor(), RemoveUser())
    add_form_template = None
    change_form_outer_before_template = "backoffice/user_action_buttons.html"
    list_before_template = "backoffice/action_buttons.html"
    list_display = (
        column("User", "username"),
        column("Status", lambda user: status_pill("active" if user.is_active else "inactive")),
        column("Name", User.get_full_name),
        column("Groups", _group_names),
        column("Two-factor login", "has_second_factor"),
        _LAST_LOGIN,
    )
    show_add_link = False  # `changelist_view` has a button
    search_help_text = "Username, name or email address"
    list_filter = ("groups", "is_active", "is_superuser")
    list_filter_submit = True
    lookups = ("groups__id__exact", "groups__isnull", "is_active__exact", "is_superuser__exact")  # of the filters above
    readonly_fields = (_LAST_LOGIN, _ADDED)  # type: ignore[assignment]  # the stubs know names only
    show_full_result_count = False

    # --- List and forms ---

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        enrolled = Exists(TOTPDevice.objects.filter(user=OuterRef("pk"), confirmed=True))
        users: QuerySet[User] = super().get_queryset(request)
        return users.prefetch_related("groups").annotate(has_second_factor=enrolled)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        can_add = self.has_add_permission(request)
        buttons = [ActionButton("Add user", reverse("admin:auth_user_add"))] if can_add else []
        response: HttpResponse = super().changelist_view(request, {"title": "Users", "action_buttons": buttons})
        return response

    def get_fieldsets(self, request: HttpRequest, obj: User | None = None) -> Any:
        """Show superuser and staff status to superusers only."""
        fields = ("username", *(("password1", "password2") if obj is None else self.readonly_fields))
        rights: tuple[str, ...] = RIGHTS if request.user.is_superuser else ("is_active", "groups")
        if obj is None:
            rights = tuple(name for name in rights if name not in ("is_active", "is_staff"))
        return [
            (None, {"fields": fields}),
            ("Permissions", {"fields": rights}),
            ("Personal details", {"fields": ("first_name", "last_name", "email")}),
            ("Reason", {"fields": ("reason",)}),
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> tuple[Any, ...]:
        """Make a user's own permissions read-only."""
        return (*self.readonly_fields, *(RIGHTS if obj is not None and obj == request.user else ()))

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "groups":
            kwargs |= {"widget": UnfoldAdminCheckboxSelectMultipleWidget(), "queryset": Group.objects.order_by("pk")}
            return db_field.formfield(**kwargs)
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    # --- Permissions ---

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """True for the declared filters. Django would allow any lookup, including some that PostgreSQL rejects."""
        return lookup in self.lookups

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return super().has_change_permission(request, obj) and _may_manage(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return False  # `RemoveUser` instead: Django's page asks for no reason

    # --- Operator actions ---

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Show the operator actions and, unlike Django, one button to save."""
        user: User | None = context["original"]
        context |= {"show_save_and_add_another": False, "show_save_and_continue": False}
        if user is not None:
            buttons = self._action_buttons(request, user)
            context |= {"title": f"User {user}", "subtitle": None, "action_buttons": buttons}
        return super().render_change_form(request, context, *args, **kwargs)

    def _action_buttons(self, request: HttpRequest, user: User) -> list[ActionButton]:
        if not self.has_change_permission(request, user):
            return []
        password = ActionButton("Change password", reverse("admin:auth_user_password_change", args=[user.pk]))
        return [password, *self.action_buttons(request, user)]

    # --- Audit log, instead of Django's admin log ---

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> User | None:
        """Return the user. For a change, lock the row and remember its state before the change."""
        user: User | None = super().get_object(request, object_id, from_field)
        if user is not None and request.method == "POST":
            user = User.objects.select_for_update().get(pk=user.pk)
            request.before = audit_fields(user)  # type: ignore[attr-defined]  # for `log_change`
        return user

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        if not change:
            obj.is_staff = True  # required to log in to the back office
        super().save_model(request, obj, form, change)

    def log_addition(self, request: HttpRequest, obj: User, message: Any) -> None:  # type: ignore[override]
        self._record(request, Action.USER_ADD, obj, after=audit_fields(obj))

    def log_change(self, request: HttpRequest, obj: User, message: Any) -> None:  # type: ignore[override]
        before: dict[str, Any] = request.before  # type: ignore[attr-defined]  # of `get_object`
        after = audit_fields(obj)
        changed = [name for name in after if after[name] != before[name]]
        if changed:
            self._record(
                request,
                Action.USER_CHANGE,
                obj,
                before={name: before[name] for name in changed},
                after={name: after[name] for name in changed},
            )

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:
        """Record a password change, detected by the changed hash, in the same transaction."""
        with transaction.atomic():
            user = self.get_object(request, id)
            response: HttpResponse = super().user_change_password(request, id, form_url)
            if user is not None and request.method == "POST":
                now = User.objects.get(pk=user.pk)
                if now.password != user.password:
                    change = "changed" if now.has_usable_password() else "switched off"
                    self._record(request, Action.USER_CHANGE, now, after={"password": change})
        return response

    def _record(self, request: HttpRequest, action: Action, user: User, **states: Any) -> None:
        reason = request.POST.get("reason", "").strip()  # validated by the form
        audit.record(Entry.of(actor_of(request), action, user.get_username(), reason=reason, **states))

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Redirect to the user's audit entries. Django's own history is not kept."""
        user = super().get_object(request, object_id)
        if user is None or not self.has_view_permission(request, user):
            raise PermissionDenied
        return HttpResponseRedirect(list_url(AuditEntry, q=user.get_username()))


def _may_manage(request: HttpRequest, user: User | None) -> bool:
    """True if the user may be changed by the signed-in user: only superusers change superusers."""
    return user is None or not user.is_superuser or bool(request.user.is_superuser)
