"""Made by `make python-schema`."""

from django.db import migrations

from pillarbox.django.operations import MigrateSchema


class Migration(migrations.Migration):
    """Version 3 of the schema."""

    dependencies = [("pillarbox", "0001_schema_2")]
    operations = [MigrateSchema(3)]
