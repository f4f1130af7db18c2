"""Who may use a server: a small text file of names, roles and hashed tokens, and the command that fills it.

A token is made here (256 random bits), shown once, and kept only as its SHA-256: a token that cannot be guessed needs
no slow hash. One line per user: `name role sha256:<64 hexadecimal digits>`; lines that begin with # are comments.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctseg.errors import ConfigError, InputError
from ctseg.files import write_beside

ROLES = ("annotator", "reviewer", "admin")  # each may do what those before it may
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{20,200}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_HEAD = "# ctseg users: name, role (annotator, reviewer or admin), hash of the token; made by `ctseg user`\n"


@dataclass(frozen=True)
class User:
    """Somebody who may use the server.

    Attributes:
        name: what stands in the audit.
        role: one of `ROLES`.
        token_hash: `hash_token` of the token.
    """

    name: str
    role: str
    token_hash: str

    def may(self, role: str) -> bool:
        """Whether this user's role covers `role`."""
        return ROLES.index(self.role) >= ROLES.index(role)


def hash_token(token: str) -> str:
    """Return what is kept of a token."""
    return "sha256:" + hashlib.sha256(token.encode()).hexdigest()


def check_token(token: str, where: str) -> str:
    """Return a token without blanks around it.

    Raises:
        ConfigError: too short to be safe, or with characters that cannot stand in an address.
    """
    token = token.strip()
    if not _TOKEN.fullmatch(token):
        raise ConfigError(
            f"the token in {where} has {len(token)} characters or others than letters, digits, . _ ~ -, expected 20 to "
            "200 of these; make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return token


def find_user(users: Sequence[User], token: str) -> User | None:
    """Return the user whose token this is, or None; every hash is compared, in constant time."""
    given, found = hash_token(token), None
    for user in users:
        if hmac.compare_digest(user.token_hash, given):
            found = user
    return found


def check_private(path: Path, what: str) -> None:
    """Refuse a file of secrets that others on the machine may change or, for a token, read.

    Raises:
        ConfigError: it is missing, or its rights are too wide.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}; check its name and rights") from error
    if mode & 0o077:
        raise ConfigError(
            f"{what} {path} can be read or changed by others (mode {mode & 0o777:o}), expected 600; chmod 600 {path}"
        )


def read_token(file: Path) -> str:
    """Return the token that a file holds.

    Raises:
        InputError: it cannot be read, or is empty.
    """
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise InputError(f"the token file {file} cannot be read; name a text file that holds the token") from error
    if not token:
        raise InputError(f"the token file {file} is empty; write a long random word into it")
    return token


def read_users(path: Path) -> list[User]:
    """Read a users file.

    Raises:
        ConfigError: it cannot be read, has no user, a line of another form, or one name or token twice.
    """
    check_private(path, "the users file")
    users = _parse(path)
    if not users:
        raise ConfigError(f"the users file {path} names nobody; add a user with: ctseg user {path} NAME --role admin")
    return users


def _parse(path: Path) -> list[User]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"the users file {path} cannot be read: {error}; check its name and rights") from error
    users: list[User] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = line.split()
        right = len(parts) == 3 and _NAME.fullmatch(parts[0]) and parts[1] in ROLES and _HASH.fullmatch(parts[2])
        if not right:
            raise ConfigError(
                f"line {number} of the users file {path} is not 'name role sha256:...' with a role of "
                f"{', '.join(ROLES)}; write it with: ctseg user {path} NAME --role ROLE"
            )
        users.append(User(*parts))
    for what, values in (("name", [u.name for u in users]), ("token", [u.token_hash for u in users])):
        if len(set(values)) < len(values):
            raise ConfigError(f"the users file {path} has one {what} twice; take one of the lines out")
    return users


def add_user(path: Path, name: str, role: str) -> str:
    """Give a user a new token: a new line, or in place of the one that the user has.

    Returns:
        The token, which is kept nowhere.

    Raises:
        ConfigError: a name or role of another form, or a file that cannot be read.
        OutputError: the file cannot be written.
    """
    if not _NAME.fullmatch(name) or role not in ROLES:
        raise ConfigError(
            f"the user {name!r} with the role {role!r} is not possible: expected a name of letters, digits, . _ @ - "
            f"and one of the roles {', '.join(ROLES)}"
        )
    token = secrets.token_urlsafe(32)
    users = [user for user in _parse(path) if user.name != name] if path.exists() else []
    users.append(User(name, role, hash_token(token)))
    text = _HEAD + "".join(f"{user.name} {user.role} {user.token_hash}\n" for user in users)
    write_beside(path, text.encode(), mode=0o600)
    return token


def add_command(commands: Any) -> None:
    """Add `ctseg user` to the command line."""
    command = commands.add_parser(
        "user",
        help="give somebody a token for the server",
        description="Add a user to the server's users file, or give one a new token; the token is printed once.",
        epilog="example:\n  ctseg user users.txt anna --role annotator\n"
        "  then start the server with --conf users users.txt, and give anna the address http://HOST:PORT/t/TOKEN",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("file", type=Path, metavar="FILE", help="the users file; made when it is missing")
    command.add_argument("name", metavar="NAME", help="what the audit calls this user; no patient's name, no spaces")
    command.add_argument("--role", choices=ROLES, default=ROLES[0], help=f"what the user may do (default: {ROLES[0]})")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    print(add_user(arguments.file, arguments.name, arguments.role))
