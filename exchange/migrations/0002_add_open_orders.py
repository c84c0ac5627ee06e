from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('exchange', '0001_initial'),
    ]

    operations = [
        # The database has the default too: code that does not know the column yet goes on writing rows.
        migrations.AddField(
            model_name='holding',
            name='open_orders',
            field=models.BigIntegerField(db_default=0, default=0),
        ),
    ]
