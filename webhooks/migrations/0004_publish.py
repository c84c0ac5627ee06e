"""The outbox function, which inserts events and their deliveries."""

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).parent / "sql"


class Migration(migrations.Migration):

    dependencies = [
        ('webhooks', '0003_drop_foreign_key_checks'),
    ]

    operations = [
        migrations.RunSQL((SQL / "publish_v1.sql").read_text(), "DROP FUNCTION webhooks_publish"),
    ]
