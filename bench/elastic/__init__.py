"""Elastic size beside fixed sizes on traces of load, in virtual time: the pool's own decisions against a model server.

``python -m bench.elastic`` prints the table, ``--docs docs`` writes it and the plots into the documentation.
"""
