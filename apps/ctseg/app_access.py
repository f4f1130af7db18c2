"""Who may talk to the server: the address it listens on, tokens, roles, and which web pages may call it."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from ctseg import loopback
from ctseg.errors import ConfigError
from ctseg.serving.users import User, check_private, check_token, hash_token, read_users

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "CTSEG_TOKEN"
LOCAL_USER = User("local", "admin", "")
_LARGEST_UPLOAD_MB = 4096


@dataclass(frozen=True)
class Rule:
    """What a request needs. The first rule that fits counts; where none fits, any user may.

    Attributes:
        methods: of HTTP.
        path: a pattern for the whole path.
        role: the least role.
        what: the words of its audit line; "" writes none.
    """

    methods: frozenset[str]
    path: re.Pattern[str]
    role: str
    what: str


def _rule(methods: str, path: str, role: str, what: str = "") -> Rule:
    return Rule(frozenset(methods.split()), re.compile(path), role, what)


RULES = (
    _rule("PUT", r"/datastore/label/?", "annotator", "label saved"),
    _rule("DELETE", r"/datastore/label/?", "reviewer", "label removed"),
    _rule("PUT", r"/datastore/((image|label)/info|updatelabelinfo)/?", "annotator", "information changed"),
    _rule("PUT", r"/datastore/(image/?)?", "annotator", "image added"),
    _rule("DELETE", r"/datastore/(image/?)?", "admin", "image removed"),
    _rule("POST", r"/train/.*", "reviewer", "training started"),
    _rule("DELETE", r"/train/.*", "reviewer", "training stopped"),
    _rule("POST", r"/batch/.*", "reviewer", "batch inference started"),
    _rule("DELETE", r"/batch/.*", "reviewer", "batch inference stopped"),
    _rule("POST", r"/(proxy/dicom/(stow/)?|dicom-web/)studies(/.*)?", "annotator", "DICOM stored"),
    _rule("GET HEAD", r"/logs(/.*)?", "admin"),
    _rule("GET HEAD", r"/model/.*", "admin"),
    _rule("PUT POST DELETE", r"/model/.*", "admin", "weights changed"),
    _rule("POST", r"/reload/?", "admin", "server reloaded"),
)


def rule_for(method: str, path: str) -> Rule | None:
    """Return the rule for a request, if there is one."""
    return next((rule for rule in RULES if method in rule.methods and rule.path.fullmatch(path)), None)


@dataclass(frozen=True)
class Access:
    """What was configured.

    Attributes:
        users: who has a token; empty where none is asked for.
        origins: web pages (scheme, host, port) that may call from a browser.
        largest_upload: bytes of a request's body.
    """

    users: Sequence[User] = ()
    origins: Sequence[str] = ()
    largest_upload: int = _LARGEST_UPLOAD_MB << 20


def read_access(conf: Mapping[str, str]) -> Access:
    """Read the users, the origins and the limit of uploads.

    Args:
        conf: the pairs of `--conf`: `users` (a file, `ctseg.serving.users`), `token_file` (a file with one token),
            `origins` (with commas between), `max_upload_mb`. The environment's CTSEG_TOKEN is a token too. A token in
            the options itself would be seen by everybody on the machine and in the log, so there is no option for it.

    Raises:
        ConfigError: one of them cannot be used.
    """
    users = list(read_users(Path(conf["users"]))) if conf.get("users") else []
    if conf.get("token_file"):
        file = Path(conf["token_file"])
        check_private(file, "the token file")
        users.append(_owner(check_token(file.read_text(encoding="utf-8"), str(file)), "token-file"))
    if os.environ.get(TOKEN_VARIABLE):
        users.append(_owner(check_token(os.environ[TOKEN_VARIABLE], TOKEN_VARIABLE), "token"))
    origins = [_origin(text) for part in conf.get("origins", "").split(",") if (text := part.strip())]
    megabytes = str(conf.get("max_upload_mb") or _LARGEST_UPLOAD_MB)
    if not megabytes.isdecimal() or not 1 <= int(megabytes) <= 1 << 20:
        raise ConfigError(f"max_upload_mb is {megabytes!r}, expected whole megabytes from 1 to {1 << 20}")
    return Access(users, origins, int(megabytes) << 20)


def _owner(token: str, name: str) -> User:
    return User(name, "admin", hash_token(token))


def _origin(text: str) -> str:
    parts = urlsplit(text)
    try:
        right = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        right = False
    if not right or "*" in text or parts.path or parts.query or parts.fragment or parts.username:
        raise ConfigError(
            f"{text!r} is no origin of a web page: expected scheme, host and port, such as "
            "https://viewer.hospital:3000, without a path; a star would let any page of the internet in"
        )
    return text.lower()


def is_loopback(host: str | None) -> bool:
    """Whether a name or address is this machine's own and no other machine can reach it."""
    return (host or "").lower().endswith(".localhost") or loopback.is_loopback(host)  # RFC 6761: names below it, too


def live_config() -> Any:
    """Return the running uvicorn's configuration, found from inside the start of the app; None outside of one."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        found = getattr(frame.f_locals.get("self"), "config", None)
        if type(found).__module__ == "uvicorn.config" and hasattr(found, "host"):
            return found
        frame = frame.f_back
    return None


def listen_safely(config: Any, arguments: Sequence[str], users: Sequence[User]) -> None:
    """Let the server listen on loopback unless it was told otherwise, and nowhere else without a token.

    Args:
        config: uvicorn's; its `host` is used after the app has started. None where another server runs the app.
        arguments: of the process; MONAI Label's own default is every address of the machine.
        users: who has a token.

    Raises:
        ConfigError: it would listen wider and there is no token, or it has several worker processes.
    """
    if (getattr(config, "workers", None) or 1) > 1:
        raise ConfigError(
            f"the server was started with {config.workers} workers, expected one: cases, locks and the network's "
            "memory are shared inside one process; leave --workers out"
        )
    told = any(argument.startswith(("-i", "--ho")) for argument in arguments)
    if config is not None and config.host == "0.0.0.0" and not told:
        config.host = "127.0.0.1"
        logger.info("Listening on 127.0.0.1 only; --host tells otherwise")
    if not users and not is_loopback(getattr(config, "host", None)):
        raise ConfigError(
            f"the server would listen on {getattr(config, 'host', 'an unknown address')}, where others can reach the "
            f"studies, and there is no token: name a users file (--conf users FILE, made by ctseg user), a token file "
            f"(--conf token_file FILE) or set {TOKEN_VARIABLE}, or leave --host out"
        )
