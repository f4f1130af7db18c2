"""Whether the server of this container answers: any answer but a failure counts, since it asks without a token."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

ADDRESS = "http://127.0.0.1:8000/"


def answers(address: str = ADDRESS, timeout: float = 4.0) -> bool:
    """Whether an address answers with a status below 500 within `timeout` seconds."""
    try:
        with urllib.request.urlopen(address, timeout=timeout):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(0 if answers() else 1)
