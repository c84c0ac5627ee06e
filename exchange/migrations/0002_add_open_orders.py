from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('exchange', '0001_initial'),
    ]

    operations = [
        # The default is also in the database, so that code without this column can still insert rows.
        migrations.AddField(
            model_name='holding',
            name='open_orders',
            field=models.BigIntegerField(db_default=0, default=0),
        ),
    ]
