"""The table `users`."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """A database is ready for this application when both tables are there."""

    initial = True
    dependencies = [("pillarbox", "0001_schema_2")]
    operations = [
        migrations.CreateModel(
            name="User",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("email", models.TextField(unique=True)),
                ("first_name", models.TextField()),
                ("last_name", models.TextField()),
                ("created_at", models.DateTimeField(auto_now_add=True)),
            ],
            options={"db_table": "users"},
        ),
    ]
