"""None: the tables are not Django's. The module is here because ``post_migrate`` reaches only
applications that have one."""
