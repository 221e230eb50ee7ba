"""Made by `make python-schema`."""

from django.db import migrations

from pillarbox.django.operations import MigrateSchema


class Migration(migrations.Migration):
    """Version 2 of the schema."""

    dependencies = []
    operations = [MigrateSchema(2, drops=True)]
