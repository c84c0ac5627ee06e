"""Add the user groups: viewer, operator and administrator.

A permission added later belongs to no group automatically. A migration must then grant it, as `add_groups` does here.
"""

from django.contrib.auth.management import create_permissions
from django.db import migrations
from django.db.models import Q

APPS = ["exchange", "webhooks", "orders"]

ACTION_PERMISSIONS = {
    "exchange": [
        "admit_broker",
        "suspend_broker",
        "stop_broker",
        "list_instrument",
        "edit_instrument",
        "halt_instrument",
        "halt_market",
        "book_transfer",
        "issue_key",
        "revoke_key",
    ],
    "orders": ["cancel_order", "run_reconcile"],
    "webhooks": ["pause_subscription", "redeliver_delivery"],
}
USER_PERMISSIONS = {"auth": ["view_user", "add_user", "change_user", "delete_user", "view_group"]}


def add_groups(apps, schema_editor):
    """Create the groups or complete their permissions."""
    for label in [*APPS, "auth"]:
        _add_permissions(apps, label)
    Permission = apps.get_model("auth", "Permission")
    views = Permission.objects.filter(content_type__app_label__in=APPS, codename__startswith="view_")
    expected = (ACTION_PERMISSIONS, USER_PERMISSIONS)
    actions, users = (Permission.objects.filter(_named(names)) for names in expected)
    assert (actions.count(), users.count()) == tuple(sum(map(len, names.values())) for names in expected)
    _give(apps, "viewer", views)
    _give(apps, "operator", views, actions)
    _give(apps, "administrator", views, actions, users)


def _add_permissions(apps, label):
    """Create the permissions now: Django creates them only after all migrations."""
    config = apps.get_app_config(label)
    before, config.models_module = getattr(config, "models_module", None), True
    create_permissions(config, apps=apps, verbosity=0)
    config.models_module = before


def _named(names):
    found = Q(pk__in=[])
    for label, codenames in names.items():
        found |= Q(content_type__app_label=label, codename__in=codenames)
    return found


def _give(apps, name, *permissions):
    group, _ = apps.get_model("auth", "Group").objects.get_or_create(name=name)
    for some in permissions:
        group.permissions.add(*some)


class Migration(migrations.Migration):
    dependencies = [
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
        ("exchange", "0003_add_audit"),
        ("orders", "0009_index_documents"),
        ("webhooks", "0006_index_failed"),
    ]

    operations = [migrations.RunPython(add_groups, migrations.RunPython.noop)]
