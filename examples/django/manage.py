#!/usr/bin/env python
"""`manage.py migrate`, `manage.py pillarbox_check`, `manage.py runserver`."""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "sample.settings")
    execute_from_command_line(sys.argv)
