"""A name server on loopback that answers with the records it is told, over UDP."""

from __future__ import annotations

import socket
import threading
from types import TracebackType

import dns.flags
import dns.message
import dns.rcode
import dns.resolver
import dns.rrset


class DNSServer:
    """``records``: zone-file lines by name and type, ``{("_db._tcp.test.", "SRV"): (ttl, ["0 5 5432 a.test."])}``."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], tuple[int, list[str]]] = {}
        self.asked = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self.port = int(self._socket.getsockname()[1])
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="test-dns", daemon=True)

    def resolver(self) -> dns.resolver.Resolver:
        """One that asks this server alone."""
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers = ["127.0.0.1"]
        resolver.port = self.port
        return resolver

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                data, peer = self._socket.recvfrom(4096)
            except TimeoutError:
                continue
            query = dns.message.from_wire(data)
            answer = dns.message.make_response(query)
            answer.flags |= dns.flags.AA
            question = query.question[0]
            kind = dns.rdatatype.to_text(question.rdtype)
            found = self.records.get((question.name.to_text(), kind))
            if found is None:
                answer.set_rcode(dns.rcode.NXDOMAIN)
            else:
                answer.answer.append(dns.rrset.from_text(question.name, found[0], "IN", kind, *found[1]))
            self.asked += 1
            self._socket.sendto(answer.to_wire(), peer)

    def __enter__(self) -> DNSServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(5)
        self._socket.close()
