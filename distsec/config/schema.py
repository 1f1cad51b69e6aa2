"""Which keys the configuration has, and what each may hold: pydantic, seen by nothing outside this package.

Every key is optional here: what must be given, and what fits what, is said by the `check_*` modules, so that
a file with one mistake in it is still checked for all others. None: not given, or already complained about.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PlainValidator

from distsec.config import fields as f
from distsec.config.lines import KeyPath

MAX_ENTRIES = 1000
"""Nodes, peers, allowed names, rules; and arguments and variables of one node."""

_Entries = Field(default=None, max_length=MAX_ENTRIES)
_Texts = Annotated[list[f.Text] | None, _Entries]


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def has(self, key: str) -> bool:
        """Whether the file gives `key`, rightly or wrongly."""
        return key in self.model_fields_set


class Cluster(Table):
    name: f.TrustDomain = None
    state_dir: f.Path = None
    on_exit: f.OnExitField = None
    start_deadline_seconds: f.Deadline = None
    stop_deadline_seconds: f.Deadline = None
    acknowledge_deadline_seconds: f.Deadline = None
    start_parallel: Annotated[int | None, PlainValidator(f.whole(1, 64))] = None


class Rule(Table):
    names: Annotated[list[f.Pattern] | None, _Entries] = None
    kind: f.RuleKindField = None
    identity: f.Text = None
    dns: f.Text = None
    subject: f.Text = None
    max_live: Annotated[int | None, PlainValidator(f.whole(1, 10_000))] = None
    nodes: Annotated[list[f.Name] | None, _Entries] = None


class Distribution(Table):
    carrier: f.CarrierField = None
    allowed_nodes: Annotated[list[f.Name] | None, _Entries] = None
    bind: f.Bind = None
    confirm_network: f.Flag = None
    listen_ports: f.PortRange = None
    connect: f.ConnectField = None
    epmd: f.EpmdField = None
    rules: Annotated[list[Rule | None] | None, _Entries] = None
    foreign_trust_domains: Annotated[list[f.TrustDomain] | None, _Entries] = None
    enable_tls: f.Flag = None
    verify_mode: f.VerifyField = None
    cookie: f.Text = None
    cert_file: f.Path = None
    key_file: f.Path = None
    ca_file: f.Path = None


class Grpc(Table):
    cert_file: f.Path = None
    key_file: f.Path = None
    ca_file: f.Path = None
    server_name_override: f.Text = None
    require_client_cert: f.Flag = None
    allowed_common_names: _Texts = None


class RateLimit(Table):
    requests_per_second: Annotated[int | None, PlainValidator(f.whole(1, 1_000_000))] = None
    burst: Annotated[int | None, PlainValidator(f.whole(1, 10_000_000))] = None


class Role(Table):
    identity: f.Text = None
    permissions: Annotated[list[f.PermissionField] | None, _Entries] = None
    rate_limit: RateLimit | None = None


class Rbac(Table):
    enabled: f.Flag = None
    roles: Annotated[list[Role | None] | None, _Entries] = None


class Features(Table):
    enable_message_signing: f.Flag = None
    enable_timestamp_validation: f.Flag = None
    max_message_age_seconds: Annotated[int | None, PlainValidator(f.whole(1, 86_400))] = None
    enable_nonce_tracking: f.Flag = None
    nonce_cache_size: Annotated[int | None, PlainValidator(f.whole(1, 1_000_000_000))] = None


class Security(Table):
    mode: f.ModeField = None
    distribution: Distribution | None = None
    grpc: Grpc | None = None
    rbac: Rbac | None = None
    features: Features | None = None


class Metrics(Table):
    listen: f.Listen = None
    confirm_network: f.Flag = None


class Logging(Table):
    max_bytes: Annotated[int | None, PlainValidator(f.whole(4096, 1 << 34))] = None


class CertificateAuthority(Table):
    passphrase_file: f.Path = None


class Certificates(Table):
    days: Annotated[int | None, PlainValidator(f.whole(1, 3650))] = None
    lifetime_seconds: Annotated[float | None, PlainValidator(f.seconds(20, 3650 * 86_400))] = None
    renew_before_seconds: Annotated[float | None, PlainValidator(f.seconds(1, 3650 * 86_400))] = None
    renew_jitter_seconds: Annotated[float | None, PlainValidator(f.seconds(0, 365 * 86_400))] = None
    recycle_links: f.Flag = None
    ca: CertificateAuthority | None = None


class Node(Table):
    name: f.Name = None
    command: _Texts = None
    port: f.Port = None
    address: f.OwnAddress = None
    restart: f.RestartField = None
    restart_intensity: Annotated[int | None, PlainValidator(f.whole(0, 1000))] = None
    restart_period_seconds: Annotated[float | None, PlainValidator(f.seconds(0.1, 86_400))] = None
    environment: Annotated[dict[str, f.Text] | None, _Entries] = None
    working_directory: f.Path = None
    user: f.Text = None
    otp_libraries: f.Path = None


class Peer(Table):
    name: f.Name = None
    address: f.Address = None
    port: f.Port = None


class Document(Table):
    cluster: Cluster | None = None
    security: Security | None = None
    metrics: Metrics | None = None
    logging: Logging | None = None
    certificates: Certificates | None = None
    nodes: Annotated[list[Node | None] | None, _Entries] = None
    peers: Annotated[list[Peer | None] | None, _Entries] = None


def headers(table: type[Table] = Document, path: tuple[str, ...] = ()) -> Iterator[tuple[str, type[Table]]]:
    """Every table below `table` with the header that opens it: `[cluster]`, `[[nodes]]`, …"""
    for name, annotation in ((name, field.annotation) for name, field in table.model_fields.items()):
        for inner in _tables_in(annotation):
            dotted = ".".join((*path, name))
            yield (f"[[{dotted}]]" if _holds_list(annotation) else f"[{dotted}]"), inner
            yield from headers(inner, (*path, name))


def table_at(path: KeyPath) -> type[Table] | None:
    """The table that the configuration has at `path` (indices are passed over), None where it has none."""
    table: type[Table] | None = Document
    for key in path:
        if isinstance(key, str) and table is not None:
            field = table.model_fields.get(key)
            table = next(_tables_in(field.annotation), None) if field else None
    return table


def _tables_in(annotation: Any) -> Iterator[type[Table]]:
    if isinstance(annotation, type) and issubclass(annotation, Table):
        yield annotation
    for part in get_args(annotation):
        yield from _tables_in(part)


def _holds_list(annotation: Any) -> bool:
    return get_origin(annotation) is list or any(map(_holds_list, get_args(annotation)))
