"""What every request passes before it reaches any route, MONAI Label's or ours: token, role, origin, size, audit.

It knows no route but those of `app_access.RULES`, so a route that is added later is covered too.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from anyio import to_thread
from app_access import LOCAL_USER, Access, Rule, is_loopback, rule_for
from app_audit import Audit, caller
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from ctseg.serving.users import User, find_user

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

COOKIE = "ctseg_token"
_IN_PATH = re.compile(r"/t/([^/]+)(/.*)?")
_SAFE = ("GET", "HEAD", "OPTIONS")
_LARGEST_JSON = 16 << 20
_HEAVY = re.compile(r"/(infer|batch|predict|surfaces|scoring|viewer/run)(/.*)?")
_STUDY = re.compile(r"/studies/([0-9.]{1,64})(/|$)")
# Waiting for the network costs a thread each, of 40 that answer everything; those above wait without one.
_AT_ONCE = 16


class Guard:
    """ASGI middleware."""

    def __init__(self, app: Any, access: Access, audit: Audit) -> None:
        """Wrap `app`."""
        self._app = app
        self._access = access
        self._audit = audit
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or hand it on."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        rule: Rule | None = None

        async def record(status: int) -> None:
            if rule is not None and rule.what:
                await to_thread.run_sync(self._record, rule, scope, status)

        answered = _Answered(send, record)
        try:
            self._check_origin(scope)
            user = self._admit(scope, answered)
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            rule = rule_for(scope["method"], path)
            caller.set(user.name)
            if rule is not None and not user.may(rule.role):
                raise HTTPException(403, f"{user.name} is {user.role}, and this needs the role {rule.role}")
            counted = self._counted(scope, receive)
            async with AsyncExitStack() as stack:
                if scope["method"] == "POST" and _HEAVY.fullmatch(path):
                    await stack.enter_async_context(self._slots)
                await self._app(scope, counted, answered)
        except HTTPException as refusal:
            if answered.status is None:
                answer = JSONResponse({"detail": refusal.detail}, refusal.status_code, refusal.headers)
                await answer(scope, receive, answered)
        finally:
            if answered.status is None:
                await record(500)

    def _admit(self, scope: Scope, answered: _Answered) -> User:
        """Find the user, and take a token out of the path, so that routes and redirects never see it missing."""
        headers = Headers(scope=scope)
        root = scope.get("root_path", "")
        in_path = _IN_PATH.fullmatch(scope["path"].removeprefix(root))
        if in_path:
            scope["root_path"] = f"{root}/t/{in_path[1]}"
            if in_path[2] is None:
                scope["path"] += "/"
        if not self._access.users:
            self._check_host(headers)
            return LOCAL_USER
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        token = in_path[1] if in_path else bearer.strip() if scheme.lower() == "bearer" else _cookie(headers)
        user = find_user(self._access.users, token) if token else None
        if user is None:
            said = "the token is not known" if token else "a token is needed"
            raise HTTPException(
                401,
                f"{said}: send it as 'Authorization: Bearer TOKEN', or use http://HOST:PORT/t/TOKEN as server address",
                {"WWW-Authenticate": "Bearer"},
            )
        if in_path and scope["method"] == "GET" and (in_path[2] or "").startswith("/ohif"):
            # A page's own scripts ask for /ohif/..., /proxy/... and /infer/... without the token in the path.
            secure = "; Secure" if scope.get("scheme") == "https" else ""
            answered.cookie = f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict{secure}"
        return user

    def _check_host(self, headers: Headers) -> None:
        """Without tokens only this machine's names are answered: another name comes from a page that rebinds DNS."""
        host = urlsplit(f"//{headers.get('host', '')}").hostname
        if host and not is_loopback(host) and host not in (urlsplit(one).hostname for one in self._access.origins):
            raise HTTPException(
                403,
                f"this server has no tokens and answers as 127.0.0.1 or localhost only, not as {host[:100]}; start it "
                "with a users file or a token to use it through another name",
            )

    def _check_origin(self, scope: Scope) -> None:
        """Refuse what a strange web page makes a browser send; a request without Origin comes from no page."""
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is None or scope["method"] in _SAFE or origin.lower() in self._access.origins:
            return
        theirs, ours = urlsplit(origin).hostname, urlsplit(f"//{headers.get('host', '')}").hostname
        if theirs and (theirs == ours or (is_loopback(theirs) and is_loopback(ours))):
            return
        raise HTTPException(
            403, f"the web page {origin[:100]} may not change anything here; name it with --conf origins if it should"
        )

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        """Count what arrives: a declared length may be missing (chunks) or wrong."""
        headers = Headers(scope=scope)
        is_json = headers.get("content-type", "").startswith("application/json")
        limit = min(_LARGEST_JSON, self._access.largest_upload) if is_json else self._access.largest_upload
        too_large = HTTPException(
            413, f"the request is larger than {limit >> 20} MB, which is the most that is taken (--conf max_upload_mb)"
        )
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise too_large
        taken = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise too_large
            return message

        return counted

    def _record(self, rule: Rule, scope: Scope, status: int) -> None:
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        case = next((query[key][0] for key in ("image", "id", "label") if key in query), None)
        if study := _STUDY.search(scope["path"]):
            case = study[1]
        last = scope["path"].rpartition("/")[2]
        model = last if rule.path.pattern.startswith(("/train", "/batch", "/model")) else None
        tag = query.get("tag", ["final" if "label" in rule.what else ""])[0]
        self._audit.record(rule.what, case=case, tag=tag, model=model, status=status)


class _Answered:
    """`send`, with the headers that every answer has; it remembers the status.

    `record` is called with the status before the answer leaves, so that nobody holds an answer whose audit line is
    not written.
    """

    def __init__(self, send: Send, record: Callable[[int], Awaitable[None]]) -> None:
        self._send = send
        self._record = record
        self.status: int | None = None
        self.cookie = ""

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            await self._record(message["status"])
            headers = MutableHeaders(scope=message)
            headers["Referrer-Policy"] = "no-referrer"  # an address may hold a token
            headers["X-Content-Type-Options"] = "nosniff"
            if self.cookie:
                headers.append("Set-Cookie", self.cookie)
        await self._send(message)


def _cookie(headers: Headers) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel else ""
