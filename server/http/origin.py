"""Which web pages may ask: browsers say in `Origin` whose page a request comes from (RFC 6454; the Fetch standard's
CORS). Programs other than browsers send none, and are not looked at.

Without this any page could make its visitor's browser use a server that listens on the visitor's own machine.
"""

import re
from collections.abc import Collection

from server.errors import Forbidden
from server.http.call import Call, Headers, Reply

READABLE = b"x-request-id, retry-after, retry-after-ms, x-should-retry"
METHODS = "GET, POST"
MAX_AGE_S = 600
HEADER_NAMES = re.compile(r"[A-Za-z0-9_, -]{1,2000}")


def check_origin(call: Call, allowed: Collection[str]) -> Headers:
    """What the answer has to say to the browser. Raises Forbidden."""
    origin = call.header(b"origin")
    if origin is None:
        return ()
    if "*" in allowed or origin in allowed:
        return (
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", READABLE),
            (b"vary", b"origin"),
        )
    if origin.partition("://")[2] == call.header(b"host"):
        return ()
    raise Forbidden("pages of this origin may not ask here; its operator can allow them", param="origin")


def answer_preflight(call: Call) -> Reply | None:
    """What a browser asks before it sends another site's request; None: this is something else.

    It carries no key. Whatever headers it names may be sent: no cookie opens anything here.
    """
    if call.scope["method"] != "OPTIONS" or call.header(b"access-control-request-method") is None:
        return None
    if not any(name == b"access-control-allow-origin" for name, _ in call.extra_headers):
        return None
    headers = {"access-control-allow-methods": METHODS, "access-control-max-age": str(MAX_AGE_S)}
    wanted = call.header(b"access-control-request-headers") or ""
    if HEADER_NAMES.fullmatch(wanted):
        headers["access-control-allow-headers"] = wanted
    return Reply(b"", content_type="text/plain", headers=headers)
