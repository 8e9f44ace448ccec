"""Where a private prompt may go: this machine, and what the recipe allows by name."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Guard:
    """allowed: host or host:port, besides loopback; an IPv6 address with a port stands in brackets.

    Hosts are compared as they are written: nothing is resolved, since what a name means may change between the check
    and the request. So a name other than localhost is not this machine, nor is another address of it, nor a number
    that only a resolver would read as an address (127.1, 0x7f000001).
    """

    allowed: tuple[str, ...] = ()

    def may_receive_private(self, url: str) -> bool:
        """Whether a private prompt may be sent to this URL. False for what is no URL."""
        return is_loopback(host_of(url)) or self.names(url)

    def names(self, url: str) -> bool:
        """Whether this URL's host is among the allowed, at any port or at its own."""
        host, port = host_of(url), port_of(url)
        return bool(host) and any(
            entry == host and entry_port in (None, port) for entry, entry_port in map(parsed, self.allowed)
        )


def host_of(url: str) -> str:
    """As `plain` writes it; nothing where there is none."""
    try:
        return plain(urlsplit(url).hostname or "")
    except ValueError:  # brackets that do not close
        return ""


def port_of(url: str) -> int | None:
    """The URL's own port, or its scheme's; None for what is no port."""
    try:
        parts = urlsplit(url)
        return PORTS.get(parts.scheme) if parts.port is None else parts.port
    except ValueError:
        return None


def parsed(entry: str) -> tuple[str, int | None]:
    """An entry of the allowed as (host, port); None: any port. What is neither stays whole, and fits no URL."""
    host, colon, port = entry.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if colon and port.isascii() and port.isdigit() and (bracketed or ":" not in host):
        return plain(host), int(port)
    return plain(entry), None


def plain(host: str) -> str:
    """One way of writing a host: lower case, no last dot, no brackets, an IPv6 address at its shortest."""
    host = host.lower().removesuffix(".").removeprefix("[").removesuffix("]")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


def is_loopback(host: str) -> bool:
    """Whether a host, as it stands in a URL, is this machine."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
