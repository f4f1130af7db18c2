"""The users file: what is kept of a token, who is found by it, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ctseg.cli import main
from ctseg.errors import ConfigError
from ctseg.serving.users import ROLES, User, add_user, check_private, check_token, find_user, hash_token, read_users

TOKEN = "abcdefghijklmnopqrst"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_only_the_hash_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "users.txt"
    token = add_user(file, "anna", "annotator")
    assert len(token) >= 43 and token not in file.read_text()
    assert f"anna annotator sha256:{hashlib.sha256(token.encode()).hexdigest()}\n" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    other = add_user(file, "ben", "admin")
    users = read_users(file)
    assert [(user.name, user.role) for user in users] == [("anna", "annotator"), ("ben", "admin")]
    assert find_user(users, token) == users[0] and find_user(users, other) == users[1]
    assert find_user(users, token + "x") is None and find_user(users, "") is None
    assert find_user(users, users[0].token_hash) is None  # who has read the file has no token


def test_a_new_token_takes_the_place_of_the_old(tmp_path: Path) -> None:
    file = tmp_path / "users.txt"
    old = add_user(file, "anna", "annotator")
    new = add_user(file, "anna", "reviewer")
    users = read_users(file)
    assert find_user(users, old) is None
    assert find_user(users, new) == User("anna", "reviewer", hash_token(new))


def test_roles_cover_those_below() -> None:
    may = [[User("x", role, "").may(asked) for asked in ROLES] for role in ROLES]
    assert may == [[True, False, False], [True, True, False], [True, True, True]]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "names nobody"),
        ("# nobody\n\n", "names nobody"),
        ("anna admin\n", "line 1"),
        ("# x\nanna owner " + hash_token(TOKEN), "line 2"),
        ("anna admin " + TOKEN, "line 1"),
        ("an/na admin " + hash_token(TOKEN), "line 1"),
        (f"anna admin {hash_token('a')}\nanna admin {hash_token('b')}\n", "one name twice"),
        (f"anna admin {hash_token('a')}\nben admin {hash_token('a')}\n", "one token twice"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_users(write(tmp_path / "users.txt", text))


def test_files_that_others_can_read_are_refused(tmp_path: Path) -> None:
    for mode in (0o640, 0o604, 0o620, 0o666):
        with pytest.raises(ConfigError, match="chmod 600"):
            check_private(write(tmp_path / "users.txt", "", mode), "the users file")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_users(tmp_path / "missing.txt")


def test_weak_tokens_are_refused() -> None:
    assert check_token(f" {TOKEN}\n", "x") == TOKEN
    for weak in ("", "short", "a" * 19, "a" * 201, "with space in the middle", "slash/slash/slash/slash", "ä" * 30):
        with pytest.raises(ConfigError, match="20 to 200") as caught:
            check_token(weak, "CTSEG_TOKEN")
        assert not weak or weak not in str(caught.value)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "users.txt"
    assert main(["user", str(file), "anna", "--role", "reviewer"]) == 0
    token = capsys.readouterr().out.strip()
    assert find_user(read_users(file), token) == User("anna", "reviewer", hash_token(token))
    assert main(["user", str(file), "an na"]) == 2
    assert "the user 'an na'" in capsys.readouterr().err
