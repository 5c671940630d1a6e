"""Django: PostgreSQL and Redis through poolkit, with one line of settings each.

``DATABASES["default"]["ENGINE"] = "poolkit.frameworks.django.postgresql"``, and
``CACHES["default"]["BACKEND"] = "poolkit.frameworks.django.cache.RedisCache"``. Needs Django 5.1 or newer:
``pip install 'poolkit[django]'``.
"""
