"""All adapters together under load and random faults: ``python -m bench.soak --minutes N``.

Every reply is compared with its request; connections are counted at the servers; memory and descriptors must
not grow. Exit code 1 when anything of that fails.
"""
