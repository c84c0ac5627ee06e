from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('webhooks', '0008_publish_by_index'),
    ]

    operations = [
        # The default is also in the database, so that code without this column can still insert rows.
        migrations.AddField(
            model_name='subscription',
            name='failures_left',
            field=models.SmallIntegerField(db_default=1, default=1),
        ),
    ]
