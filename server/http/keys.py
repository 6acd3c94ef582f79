"""Who asks, and what they may do: API keys and their limits. Knows no route and no protocol."""

import hmac
from collections.abc import Callable, Sequence
from time import monotonic
from types import TracebackType

from server.api_keys import KeyConfig, KeyRights, hash_key
from server.errors import Forbidden, Overloaded, Unauthenticated

Clock = Callable[[], float]

KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key")
BUSY_RETRY_S = 1.0
"""Until one of a key's own calls ends: nobody knows how long those take."""


class Bucket:
    """Holds `per_minute` at most, and fills at that rate (Turner, 1986: the token bucket). Mutable: its level.

    It may be overdrawn: what a call costs is known when it has been done. What it owes comes off the next minutes.
    """

    def __init__(self, per_minute: float, clock: Clock) -> None:
        self.rate_s = per_minute / 60
        self.capacity = max(per_minute, 1.0)
        self._clock = clock
        self._level, self._filled_s = self.capacity, clock()

    def wait_s(self, amount: float) -> float:
        """Until there is as much; 0: now."""
        now_s = self._clock()
        self._level = min(self._level + (now_s - self._filled_s) * self.rate_s, self.capacity)
        self._filled_s = now_s
        return max(amount - self._level, 0.0) / self.rate_s

    def take(self, amount: float) -> None:
        """Negative: give back."""
        self._level -= amount


class Charge:
    """What a call has cost its key so far. Mutable."""

    def __init__(self, bucket: Bucket | None) -> None:
        self._bucket, self._num_tokens = bucket, 0

    def correct(self, num_tokens: int) -> None:
        """Replace what was known so far."""
        if self._bucket is not None:
            self._bucket.take(num_tokens - self._num_tokens)
            self._num_tokens = num_tokens


class Key:
    """What a key's holder may do. Mutable: what has been done with it lately, in this process.

    `num_workers` HTTP processes do not speak with one another about it: each takes its part of every limit.
    """

    def __init__(self, rights: KeyRights, *, num_workers: int = 1, clock: Clock = monotonic) -> None:
        self.rights = rights
        self.name = rights.name
        self.salt = rights.name if rights.cache == "own" else ""
        self.num_calls = 0
        limit = rights.concurrent_requests
        self.max_calls = None if limit is None else max(limit // num_workers, 1)
        """At one time; None: any number."""
        per_minute = (rights.requests_per_minute, rights.tokens_per_minute)
        self._calls, self._tokens = (
            None if limit is None else Bucket(limit / num_workers, clock) for limit in per_minute
        )

    def enter(self) -> "Visit":
        """For the time of a call; a context manager. Raises Overloaded."""
        if self.max_calls is not None and self.num_calls >= self.max_calls:
            raise Overloaded(
                f"this key has {self.num_calls} requests under way, its limit; send the next when one has ended",
                retry_after_s=BUSY_RETRY_S,
                code="rate_limit_exceeded",
            )
        if self._calls is not None:
            check_bucket(self._calls, "requests")
            self._calls.take(1)
        return Visit(self)

    def charge(self, num_tokens: int, *, has_begun: bool = False) -> Charge:
        """`num_tokens` may be an estimate, and more than is left: nobody could ask a long question otherwise. Who owes
        some has to wait, but for the rest of a call that `has_begun`. Raises Overloaded."""
        if self._tokens is not None and not has_begun:
            check_bucket(self._tokens, "tokens")
        charge = Charge(self._tokens)
        charge.correct(num_tokens)
        return charge

    def may_use(self, model: str) -> bool:
        return self.rights.models is None or model in self.rights.models

    def check_priority(self, priority: int) -> None:
        """Raises Forbidden."""
        if priority and not self.rights.priority:
            raise Forbidden("priority may not be chosen here; leave it out, or set it to 0", param="priority")

    def check_admin(self) -> None:
        """Raises Forbidden."""
        if not self.rights.admin:
            raise Forbidden("this key does not open this page; use one that its owner has marked for it")


class Visit:
    """A call under way, as a context manager."""

    __slots__ = ("_key",)

    def __init__(self, key: Key) -> None:
        self._key = key

    def __enter__(self) -> None:
        self._key.num_calls += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._key.num_calls -= 1


def check_bucket(bucket: Bucket, what: str) -> None:
    """Raises Overloaded where there is not even one."""
    wait_s = bucket.wait_s(1)
    if wait_s > 0:
        raise Overloaded(
            f"this key has used its {what} per minute; send the next in {wait_s:.1f} s",
            retry_after_s=wait_s,
            code="rate_limit_exceeded",
        )


class Keyring:
    """All keys there are. Without any, everybody is let in as `anyone`."""

    def __init__(
        self, keys: Sequence[KeyConfig], *, allow_priority: bool, num_workers: int, clock: Clock = monotonic
    ) -> None:
        self._keys = [(each.hash, Key(each, num_workers=num_workers, clock=clock)) for each in keys]
        self.nobody = Key(KeyRights(name="unknown", models=()))
        """Whoever has not shown a key yet, or need not."""
        self._anyone = Key(KeyRights(name="anyone", priority=allow_priority, cache="shared", admin=True))

    @property
    def is_needed(self) -> bool:
        return bool(self._keys)

    def identify(self, headers: Sequence[tuple[bytes, bytes]]) -> Key:
        """Whose key the headers hold. Raises Unauthenticated."""
        if not self._keys:
            return self._anyone
        secrets = list_secrets(headers)
        for secret in secrets:
            key = self.find(secret)
            if key is not None:
                return key
        ways = "'authorization: Bearer KEY', 'x-api-key: KEY' or 'api-key: KEY'"
        problem = (
            "this API key is not known here; check it, and send it" if secrets else "an API key is needed; send it"
        )
        raise Unauthenticated(f"{problem} as {ways}", param="authorization")

    def find(self, secret: str) -> Key | None:
        """Compared with all, in the same time whether and where it is found."""
        given, found = hash_key(secret), None
        for known, key in self._keys:
            if hmac.compare_digest(known, given):
                found = key
        return found


def list_secrets(headers: Sequence[tuple[bytes, bytes]]) -> list[str]:
    """What may be a key, from the headers that clients send them in."""
    secrets = []
    for name, value in headers:
        if name not in KEY_HEADERS:
            continue
        text = value.decode("latin-1").strip()
        if name == b"authorization":
            scheme, _, text = text.partition(" ")
            if scheme.lower() != "bearer":
                continue
        secrets.append(text.strip())
    return [secret for secret in secrets if secret]
