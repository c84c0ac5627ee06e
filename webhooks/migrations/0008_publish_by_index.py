"""Make the outbox function always use an index, regardless of the calling connection's settings."""

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).parent / "sql"


class Migration(migrations.Migration):

    dependencies = [
        ('webhooks', '0007_index_redelivered'),
    ]

    operations = [
        migrations.RunSQL((SQL / "publish_v2.sql").read_text(), (SQL / "publish_v1.sql").read_text()),
    ]
