"""The drivers' own test suites, run with our pools in the place of theirs.

``python -m tests.conformance`` is the entry; see README.md beside this file. Nothing here is a test by itself,
so no file is named ``test_*`` and an ordinary pytest run collects nothing.
"""
