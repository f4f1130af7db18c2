"""Whether an address is this computer's own: one answer for everything that listens."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str | None) -> bool:
    """Whether only this computer reaches a server that listens on this host: localhost, 127.0.0.0/8, ::1.

    Args:
        host: a name or an address, an IPv6 one with or without brackets; None or any other name is no loopback.
    """
    name = (host or "").strip("[]").lower()
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
