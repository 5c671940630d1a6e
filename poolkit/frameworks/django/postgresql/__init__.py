"""Django's PostgreSQL backend with poolkit's pool (Django looks for the module ``base`` in here)."""
