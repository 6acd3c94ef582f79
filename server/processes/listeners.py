"""The sockets that clients connect to, opened once by the supervisor, and its own way to them."""

import errno
import socket
import ssl
import urllib.request
from dataclasses import dataclass

from server.config import ConfigError, HttpConfig

BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class Listeners:
    """`admin`: a second one, where the configuration has it. `is_tls`: of the first. `grpc`: a socket that holds the
    port and listens not: gRPC opens its own in each HTTP process."""

    public: socket.socket
    admin: socket.socket | None
    is_tls: bool
    grpc: socket.socket | None = None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """As HTTP processes inherit them, in this order."""
        return tuple(each.fileno() for each in (self.public, self.admin) if each is not None)

    @property
    def public_url(self) -> str:
        return find_url(self.public, "https" if self.is_tls else "http")

    @property
    def admin_url(self) -> str:
        """Where `/info` and `/metrics` are."""
        return self.public_url if self.admin is None else find_url(self.admin, "http")

    def settle(self, config: HttpConfig) -> HttpConfig:
        """With the port of gRPC, where any free one was asked for."""
        if self.grpc is None:
            return config
        return config.model_copy(update={"grpc_port": self.grpc.getsockname()[1]})

    def close(self) -> None:
        for each in (self.public, self.admin, self.grpc):
            if each is not None:
                each.close()


def open_listeners(config: HttpConfig) -> Listeners:
    """Raises ConfigError where an address cannot be had, or the certificate cannot be used."""
    check_certificate(config)
    is_tls = config.ssl_certfile is not None
    admin = grpc = None
    public = listen(config.host, config.port, "server.host", "server.port")
    try:
        if config.admin_port is not None:
            admin = listen(config.admin_host, config.admin_port, "server.admin_host", "server.admin_port")
        if config.grpc_port is not None:
            grpc = hold(config.host, config.grpc_port, "server.host", "server.grpc_port")
    except ConfigError:
        Listeners(public, admin, is_tls).close()
        raise
    return Listeners(public, admin, is_tls, grpc)


def listen(host: str, port: int, host_key: str, port_key: str) -> socket.socket:
    """The keys are for the message. Raises ConfigError where the address cannot be had."""
    listener = bind(host, port, host_key, port_key, socket.SO_REUSEADDR)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def hold(host: str, port: int, host_key: str, port_key: str) -> socket.socket:
    """A port, for processes of this user that listen at it by themselves; whoever else has it is found out, and 0 has
    become a free one. Raises ConfigError where it cannot be had."""
    bind(host, port, host_key, port_key, socket.SO_REUSEADDR).close()  # whoever shares it would not be found out
    return bind(host, port, host_key, port_key, socket.SO_REUSEPORT)


def bind(host: str, port: int, host_key: str, port_key: str, option: int) -> socket.socket:
    """Raises ConfigError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{host_key} {host}, {port_key} {port}: {error.strerror}. {advise(error, host_key)}"
        ) from None
    return listener


def advise(error: OSError, host_key: str) -> str:
    """The way out."""
    if error.errno == errno.EADDRINUSE:
        return "Choose another port, or stop who has it"
    if error.errno == errno.EACCES:
        return "Choose a port that you may have: those from 1024 are anybody's"
    return f"Set {host_key} to an address of this machine: 127.0.0.1 for itself alone, 0.0.0.0 for all it has"


def check_certificate(config: HttpConfig) -> None:
    """Here rather than in each HTTP process, over and over. Raises ConfigError."""
    if config.ssl_certfile is None:
        return
    secret = config.ssl_keyfile_password
    password = "" if secret is None else secret.get_secret_value()  # never asked for at a terminal
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.ssl_certfile, config.ssl_keyfile, password)
    except OSError as error:  # SSLError is one
        raise ConfigError(
            f"server.ssl_certfile {config.ssl_certfile}, server.ssl_keyfile {config.ssl_keyfile}: "
            f"{error.strerror or error}. Name a certificate and its key in PEM, and the key's password where it has one"
        ) from None


def find_url(listener: socket.socket, scheme: str) -> str:
    """An address to reach the listener from this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def build_direct_opener() -> urllib.request.OpenerDirector:
    """The way to this machine leads past the proxies of the environment, and to a socket that we have opened ourselves:
    there is nothing that the certificate, made out to the server's name, would have to prove."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))


DIRECT = build_direct_opener()


def fetch(url: str, key: str = "") -> bytes | None:
    """The body; None where the answer is not 200 or does not come. `key`: to be shown, where one is needed."""
    request = urllib.request.Request(url, headers={"x-api-key": key} if key else {})
    try:
        with DIRECT.open(request, timeout=5) as response:
            return bytes(response.read())
    except OSError:
        return None
