"""Keys that are accepted and not, or not yet, acted upon; and what would be unsafe about them. Pure.

They come from the security.toml of systems that move here. A key whose silent neglect would leave somebody
less safe than they believe must be in this list.
"""

from __future__ import annotations

from collections.abc import Iterator

from distsec.config.lines import KeyPath
from distsec.config.report import Report
from distsec.config.schema import Distribution, Document, Features, Grpc, Rbac, Security
from distsec.model.cookies import PLACEHOLDER

SHORTEST_COOKIE = 20
"""Characters: what Erlang itself makes (auth.erl, create_cookie/1), about 94 bits."""

WELL_KNOWN_COOKIES = frozenset(
    [
        "nocookie",
        "cookie",
        "secret",
        "monster",
        "erlang",
        "elixir",
        "gleam",
        "rabbitmq",
        "ejabberd",
        "riak",
        "couchdb",
        "emqx",
        "emqxsecretcookie",
        "vernemq",
        "changeme",
        "change_me",
        "change-me",
        "mycookie",
        "my_cookie",
        "secret_cookie",
        "secretcookie",
        "test",
        "testing",
        "dev",
        "development",
        "password",
        "production",
        "prod",
        "default",
        "cluster",
        "clustercookie",
        "supersecret",
        "your-secure-cookie-here",
        PLACEHOLDER,
    ]
)

_OWN_CERTIFICATES = {
    "cert_file": "each node has a certificate of its own: `distsec certs import --node` brings one",
    "key_file": "each node has a key of its own: `distsec certs import --node` brings one",
    "ca_file": "nodes trust the cluster's own CA: `distsec certs import --ca-certificate` brings yours",
}
_GRPC = "there is no gRPC API yet"
_RBAC = "roles belong to the gRPC API, which is not built yet: nothing is checked against them"
_FEATURES = "signed messages belong to the gRPC API, which is not built yet"


def check_unbuilt(document: Document, report: Report) -> None:
    security = document.security or Security()
    distribution = security.distribution or Distribution()
    _check_cookie(distribution, report)
    for key, instead in _OWN_CERTIFICATES.items():
        if distribution.has(key):
            report.not_enforced(("security", "distribution", key), instead)
    if security.grpc:
        _check_grpc(security.grpc, distribution, report)
    if security.rbac:
        _check_rbac(security.rbac, report)
    if security.features:
        _check_features(security.features, security.rbac or Rbac(), report)


def _check_cookie(distribution: Distribution, report: Report) -> None:
    path: KeyPath = ("security", "distribution", "cookie")
    if not distribution.has("cookie"):
        return
    report.not_enforced(path, "cookies are derived for each pair of nodes from a secret that no node sees")
    cookie = distribution.cookie
    if cookie is None:
        return
    do = "remove it, and change it wherever else it is used"
    source = (
        "the environment, where other processes may read it"
        if report.origin(path)
        else "the configuration file"
    )
    report.warn(path, f"one cookie for all nodes, kept in {source}, is unsafe, and is not used", do)
    if cookie.lower() in WELL_KNOWN_COOKIES:
        report.warn(path, "is a well-known cookie that attackers try first", do)
    elif len(cookie) < SHORTEST_COOKIE:
        report.warn(path, f"is shorter than {SHORTEST_COOKIE} characters and can be guessed", do)
    if cookie.startswith("-"):
        report.warn(path, "begins with -, which erl reads as a flag and not as a cookie", do)


def _check_grpc(grpc: Grpc, distribution: Distribution, report: Report) -> None:
    path: KeyPath = ("security", "grpc")
    report.not_enforced(path, _GRPC)
    for key in ("cert_file", "key_file"):
        if getattr(grpc, key) is not None and getattr(grpc, key) == getattr(distribution, key):
            report.warn(
                (*path, key),
                "is the distribution's own: whoever gets it for gRPC can join the cluster and run code there",
                "use a certificate of another CA for gRPC",
            )
    if grpc.require_client_cert is False:
        report.warn((*path, "require_client_cert"), "false would let anybody call", "set it to true")
    if grpc.server_name_override is not None:
        report.warn(
            (*path, "server_name_override"),
            "accepts that one name from whatever address is dialled",
            "remove it",
        )


def _check_rbac(rbac: Rbac, report: Report) -> None:
    path: KeyPath = ("security", "rbac")
    report.not_enforced(path, _RBAC)
    if rbac.enabled is False:
        report.warn((*path, "enabled"), "false would let every caller do everything", "set it to true")
    seen: set[str] = set()
    for index, role in enumerate(rbac.roles or ()):
        if role is None:
            continue
        here = (*path, "roles", index)
        for key in ("identity", "permissions"):
            if not role.has(key):
                report.error(here, f"has no {key}", f"add {key} = …")
        if role.identity is not None and role.identity in seen:
            report.error((*here, "identity"), f"{role.identity[:80]!a} has a role already", "join the two")
        if role.identity is not None:
            seen.add(role.identity)
        if role.identity == "":
            report.error((*here, "identity"), "is empty", "write a DN, a SPIFFE ID or a DNS name")


def _check_features(features: Features, rbac: Rbac, report: Report) -> None:
    path: KeyPath = ("security", "features")
    report.not_enforced(path, _FEATURES)
    for key, consequence in _switched_off(features):
        report.warn((*path, key), f"false would {consequence}", "set it to true")
    if features.nonce_cache_size is None or features.enable_nonce_tracking is False:
        return
    rate = sum(
        role.rate_limit.requests_per_second or 0 for role in rbac.roles or () if role and role.rate_limit
    )
    needed = rate * (features.max_message_age_seconds or 300)
    if features.nonce_cache_size < needed:
        report.warn(
            (*path, "nonce_cache_size"),
            f"is less than the {needed} messages that the rate limits admit within max_message_age_seconds: "
            "forgotten ones could be replayed",
            f"set it to {needed} at least",
        )


def _switched_off(features: Features) -> Iterator[tuple[str, str]]:
    if features.enable_message_signing is False:
        yield "enable_message_signing", "let anybody forge messages"
    if features.enable_timestamp_validation is False:
        yield "enable_timestamp_validation", "let old messages be replayed"
    if features.enable_nonce_tracking is False:
        yield "enable_nonce_tracking", "let messages be replayed while they are fresh"
