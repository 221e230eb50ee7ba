"""Made by `make python-schema`."""

from django.db import migrations

from pillarbox.django.operations import MigrateSchema


class Migration(migrations.Migration):
    """Version 4 of the schema."""

    dependencies = [("pillarbox", "0002_schema_3")]
    operations = [MigrateSchema(4)]
