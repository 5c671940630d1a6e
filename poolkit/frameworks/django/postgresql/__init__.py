"""Django's PostgreSQL backend with poolkit's pool (Django imports the module ``base`` of this package)."""
