"""Where a private prompt may go: this machine, and what the recipe allows by name."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Guard:
    """allowed: host or host:port, besides loopback. A name other than localhost is not this machine, whatever it
    resolves to: what a name resolves to may change between the check and the request."""

    allowed: tuple[str, ...] = ()

    def may_receive_private(self, url: str) -> bool:
        """Whether a private prompt may be sent to this URL."""
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".").lower()
        port = parts.port or _PORTS.get(parts.scheme)
        return is_loopback(host) or bool({host, f"{host}:{port}"} & {entry.lower() for entry in self.allowed})


def is_loopback(host: str) -> bool:
    """Whether a host, as it stands in a URL, is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
