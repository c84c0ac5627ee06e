"""People: who may come in, and what they may do."""

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import Group, User
from unfold.admin import ModelAdmin
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

admin.site.unregister(Group)
admin.site.unregister(User)


@admin.register(User)
class UserPages(UserAdmin, ModelAdmin):  # type: ignore[misc, type-arg]  # unfold is not typed, and Django takes no parameters
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
