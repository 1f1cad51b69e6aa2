"""From text to ClusterSpec: what loads, with which defaults, and how problems are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distsec.config.load import find_config, load
from distsec.config.report import MAX_PROBLEMS
from distsec.errors import ConfigError, Problem
from distsec.model.cluster import (
    Carrier,
    CliRuleSpec,
    ClusterSpec,
    Epmd,
    Mode,
    OnExit,
    PeerSpec,
    RestartPolicy,
)
from distsec.model.names import NodeName

Parse = Callable[..., ClusterSpec]
Problems = Callable[..., list[Problem]]

SEED = (Path(__file__).parent / "security.toml").read_text()
"""The security.toml of the systems that move here, exactly as they have it."""

COOKIE = "FKDWPAVQXMZRJTLUEHSB"

FULL = """
[cluster]
name = "serviceradar"
state_dir = "state"
on_exit = "stop"
start_deadline_seconds = 12
stop_deadline_seconds = 1.5
acknowledge_deadline_seconds = 2
start_parallel = 2

[security]
mode = "production"

[security.distribution]
carrier = "distsec"
allowed_nodes = ["poller@127.0.0.1", "agent@127.0.0.1", "sync@10.0.0.3"]
listen_ports = [9100, 9155]
connect = "none"
epmd = "loopback"

[[security.distribution.rules]]
names = ["rabbitmqcli-*@127.0.0.1"]
kind = "cli"
identity = "spiffe://serviceradar/cli/*"

[metrics]
listen = "[::1]:0"

[logging]
max_bytes = 65536

[certificates]
days = 90
renew_before_seconds = 86400
renew_jitter_seconds = 600
recycle_links = true
[certificates.ca]
passphrase_file = "../secret/passphrase"

[[nodes]]
name = "poller@127.0.0.1"
command = ["erl", "-noinput"]
restart = "on-failure"
restart_intensity = 0
restart_period_seconds = 5
port = 9200
working_directory = "../work"
otp_libraries = "/opt/otp/lib"
environment = { LANG = "C.UTF-8", HOME_OF = "${HOME}" }

[[nodes]]
name = "agent@127.0.0.1"

[[peers]]
name = "sync@10.0.0.3"
address = "10.0.0.3"
port = 9100
"""


def test_reads_every_key(spec: Parse) -> None:
    cluster = spec(FULL, {"HOME": "/root"})
    assert (cluster.name, cluster.state_dir, cluster.config_file) == (
        "serviceradar",
        "/etc/distsec/state",
        "/etc/distsec/distsec.toml",
    )
    assert (cluster.mode, cluster.carrier, cluster.on_exit) == (
        Mode.PRODUCTION,
        Carrier.DISTSEC,
        OnExit.STOP,
    )
    assert [str(name) for name in cluster.allowed_nodes] == [
        "poller@127.0.0.1",
        "agent@127.0.0.1",
        "sync@10.0.0.3",
    ]
    assert (cluster.listen_ports, cluster.connect, cluster.metrics_listen) == (
        (9100, 9155),
        "none",
        ("::1", 0),
    )
    assert cluster.epmd is Epmd.LOOPBACK
    assert cluster.rules == (CliRuleSpec(("rabbitmqcli-*@127.0.0.1",), "spiffe://serviceradar/cli/*"),)
    assert cluster.peers == (PeerSpec(NodeName.parse("sync@10.0.0.3"), "10.0.0.3", 9100),)
    assert (cluster.log_max_bytes, cluster.certificate_days, cluster.start_parallel) == (65536, 90, 2)
    assert cluster.ca_passphrase_file == "/etc/secret/passphrase"
    assert (cluster.renew_before_seconds, cluster.renew_jitter_seconds) == (86400, 600)
    assert cluster.recycle_links is True
    deadlines = (
        cluster.start_deadline_seconds,
        cluster.stop_deadline_seconds,
        cluster.acknowledge_deadline_seconds,
    )
    assert deadlines == (12, 1.5, 2)
    poller, agent = cluster.nodes
    assert poller.command == ("erl", "-noinput")
    assert (poller.restart, poller.restart_intensity, poller.restart_period_seconds) == (
        RestartPolicy.ON_FAILURE,
        0,
        5,
    )
    assert poller.otp_libraries == "/opt/otp/lib"
    assert (poller.port, poller.address, poller.working_directory) == (9200, "127.0.0.1", "/etc/work")
    assert poller.environment == {"LANG": "C.UTF-8", "HOME_OF": "/root"}
    assert (agent.command, agent.port) == ((), None)
    assert (cluster.warnings, cluster.not_enforced) == ((), ())


def test_an_empty_file_is_production_on_loopback_and_admits_nobody(spec: Parse) -> None:
    cluster = spec("")
    assert (cluster.mode, cluster.carrier) == (Mode.PRODUCTION, Carrier.DISTSEC)
    assert (cluster.metrics_listen, cluster.on_exit) == (("127.0.0.1", 9911), OnExit.LEAVE)
    assert (cluster.allowed_nodes, cluster.nodes, cluster.rules) == ((), (), ())
    assert any("no node is admitted" in warning for warning in cluster.warnings)


def test_the_spec_is_a_frozen_value(spec: Parse) -> None:
    cluster = spec(FULL, {"HOME": "/root"})
    assert cluster == spec(FULL, {"HOME": "/root"})
    assert cluster != spec(FULL, {"HOME": "/home"})
    assert hash(cluster) == hash(spec(FULL, {"HOME": "/root"}))
    with pytest.raises(TypeError):
        cluster.nodes[0].environment["X"] = "1"  # type: ignore[index]
    with pytest.raises(AttributeError):
        cluster.name = "other"  # type: ignore[misc]


def test_the_application_secrets_in_an_environment_are_not_in_a_repr(spec: Parse) -> None:
    assert "hunter2" not in repr(spec(FULL, {"HOME": "hunter2"}))


# ---- the security.toml of the systems that move here


def test_the_seed_loads_as_it_is_written(spec: Parse) -> None:
    cluster = spec(SEED, {"ERLANG_COOKIE": COOKIE})
    assert (cluster.mode, cluster.carrier) == (Mode.PRODUCTION, Carrier.DISTSEC)
    assert [str(name) for name in cluster.allowed_nodes] == [
        "poller@192.168.2.100",
        "agent@192.168.2.101",
        "sync@192.168.2.23",
    ]


def test_says_what_of_the_seed_is_not_enforced_in_file_order(spec: Parse) -> None:
    entries = spec(SEED, {"ERLANG_COOKIE": COOKIE}).not_enforced
    assert [entry.key for entry in entries] == [
        "security.distribution.cookie",
        "security.distribution.cert_file",
        "security.distribution.key_file",
        "security.distribution.ca_file",
        "security.grpc",
        "security.rbac",
        "security.features",
    ]
    assert all(entry.why for entry in entries)


@pytest.mark.parametrize(
    "named",
    [
        "line 7: security.distribution.cookie: one cookie for all nodes, kept in the environment",
        "line 20: security.grpc.cert_file: is the distribution's own",
        "line 21: security.grpc.key_file: is the distribution's own",
        "line 23: security.grpc.server_name_override",
        "line 60: security.features.nonce_cache_size: is less than the 348000 messages",
        "line 13: security.distribution.allowed_nodes: admitted but never dialled",
    ],
)
def test_names_each_unsafe_setting_of_the_seed(spec: Parse, named: str) -> None:
    assert any(warning.startswith(named) for warning in spec(SEED, {"ERLANG_COOKIE": COOKIE}).warnings)


def test_the_seed_without_its_cookie_is_one_problem(problems: Problems) -> None:
    (problem,) = problems(SEED)
    assert (problem.key, problem.line) == ("security.distribution.cookie", 7)
    assert problem.what == "the environment variable ERLANG_COOKIE is not set"


@pytest.mark.parametrize(
    ("cookie", "named"),
    [
        ("your-secure-cookie-here", "well-known"),
        ("Monster", "well-known"),
        ("abc", "shorter than 20"),
        ("", "shorter than 20"),
        ("-" + COOKIE, "begins with -"),
    ],
)
def test_names_what_is_wrong_with_a_cookie_and_never_shows_it(spec: Parse, cookie: str, named: str) -> None:
    warnings = spec(SEED, {"ERLANG_COOKIE": cookie}).warnings
    assert any(named in warning for warning in warnings)
    assert not cookie or not any(cookie in warning for warning in warnings)


def test_a_good_cookie_is_only_unused(spec: Parse) -> None:
    about = [w for w in spec(SEED, {"ERLANG_COOKIE": COOKIE}).warnings if "distribution.cookie" in w]
    assert len(about) == 1
    assert not any(COOKIE in warning for warning in about)


def test_a_cookie_that_is_written_in_the_file_is_named(spec: Parse) -> None:
    warnings = spec(f'[security.distribution]\ncookie = "{COOKIE}"').warnings
    assert any("kept in the configuration file" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("require_client_cert = true", "require_client_cert = false", "security.grpc.require_client_cert"),
        ("[security.rbac]\nenabled = true", "[security.rbac]\nenabled = false", "security.rbac.enabled"),
        ("signing = true", "signing = false", "security.features.enable_message_signing"),
        (
            "stamp_validation = true",
            "stamp_validation = false",
            "security.features.enable_timestamp_validation",
        ),
        ("nonce_tracking = true", "nonce_tracking = false", "security.features.enable_nonce_tracking"),
    ],
)
def test_names_a_protection_of_the_seed_that_is_switched_off(
    spec: Parse, old: str, new: str, key: str
) -> None:
    assert old in SEED
    warnings = spec(SEED.replace(old, new), {"ERLANG_COOKIE": COOKIE}).warnings
    assert any(f": {key}: false would" in warning for warning in warnings)


def test_a_role_needs_an_identity_of_its_own_and_known_permissions(problems: Problems) -> None:
    found = problems(
        """
        [[security.rbac.roles]]
        identity = "CN=a"
        permissions = ["read", "writ"]
        [[security.rbac.roles]]
        identity = "CN=a"
        """
    )
    assert [(problem.key, problem.line) for problem in found] == [
        ("security.rbac.roles[0].permissions[1]", 4),
        ("security.rbac.roles[1]", 5),
        ("security.rbac.roles[1].identity", 6),
    ]
    assert found[0].do == 'did you mean "write"?'


# ---- problems


def test_tells_every_problem_at_once_in_file_order(problems: Problems) -> None:
    found = problems(
        """\
[cluster]
name = "Not A Domain"
[security]
mode = "prodction"
[security.distribution]
cookie = "${NOT_SET}"
verify_mode = "verify_none"
allowed_nodes = [
  "a@127.0.0.1",
  "bad name",
]
[[nodes]]
name = "a@127.0.0.1"
port = 80
[[nodes]]
name = "a@127.0.0.1"
comand = ["erl"]
""",
        {"DISTSEC_SECURITY_MODE": "hybrd"},
    )
    assert [(problem.line, problem.key) for problem in found] == [
        (0, "DISTSEC_SECURITY_MODE"),
        (2, "cluster.name"),
        (4, "security.mode"),
        (6, "security.distribution.cookie"),
        (7, "security.distribution.verify_mode"),
        (10, "security.distribution.allowed_nodes[1]"),
        (14, "nodes[0].port"),
        (16, "nodes[1].name"),
        (17, "nodes[1].comand"),
    ]


def test_each_problem_is_one_line_with_file_line_key_and_what_to_do(spec: Parse) -> None:
    with pytest.raises(ConfigError) as caught:
        spec('[cluster]\nname = "demo"\non_exti = "stop"\n[metrics]\nlisten = 5')
    path = "/etc/distsec/distsec.toml"
    assert str(caught.value).splitlines() == [
        f"{path}: line 3: cluster.on_exti: is no key of this configuration; did you mean on_exit?",
        f"{path}: line 5: metrics.listen: must be a text; put it in quotes",
    ]
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    ("text", "do"),
    [
        ("[clutser]", "did you mean cluster?"),
        ("[security.distribution]\nallow_nodes = []", "did you mean allowed_nodes?"),
        ("[security.distribution]\nLISTEN-PORTS = []", "did you mean listen_ports?"),
        ("[[nodes]]\nname = 'a@h'\nenv = {}", "did you mean environment?"),
        ("[security.distribution]\nmode = 'production'", "mode belongs in [security]"),
        ("allowed_nodes = []", "allowed_nodes belongs in [security.distribution]"),
        ("[cluster]\nrestart = 'always'", "restart belongs in [[nodes]]"),
        ("[security]\ncomands = []", "did you mean command in [[nodes]]?"),
        ("[security.distribution]\nktls = true", "with kernel TLS the peer's certificate is gone"),
        ("[metrics]\nqwertz = 1", "remove it; known here: listen"),
        ('[metrics]\n"\\u202e\\n" = 1', "remove it"),
    ],
)
def test_an_unknown_key_is_refused_with_what_was_probably_meant(
    problems: Problems, text: str, do: str
) -> None:
    found = [problem for problem in problems(text) if "is no key" in problem.what]
    assert len(found) == 1
    assert do in found[0].do
    assert str(found[0]).isprintable()


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a = ", 1, "is no TOML: Invalid value"),
        ("[cluster]\nname = 'x\n\n", 2, "is no TOML"),
        ("[cluster]\n\nname = 1\nname = 2", 4, "is no TOML: Cannot overwrite a value"),
        ("[cluster]\nstart_parallel = " + "9" * 5000, 0, "is no TOML"),
        ("x = " + "[" * 5000, 0, "is nested too deeply"),
        ("x = " + "[" * 200 + "]" * 200, 1, "is no key"),
        ("a = 1\x00", 1, "is no TOML"),
    ],
)
def test_broken_toml_is_told_with_its_line(problems: Problems, text: str, line: int, what: str) -> None:
    found = problems(text)
    assert found[0].line == line
    assert what in found[0].what


@pytest.mark.parametrize(
    ("text", "key", "what"),
    [
        ("cluster = 1", "cluster", "must be a table"),
        ("nodes = 1", "nodes", "must be a list"),
        ("nodes = [1]", "nodes[0]", "must be a table"),
        ("[nodes]\nname = 'a@h'", "nodes", "must be a list"),
        ("[[cluster]]", "cluster", "must be a table"),
        (
            "[security.distribution]\nallowed_nodes = 'a@h'",
            "security.distribution.allowed_nodes",
            "must be a list",
        ),
        (
            "[security.distribution]\nallowed_nodes = [1]",
            "security.distribution.allowed_nodes[0]",
            "must be a text",
        ),
        (
            "[security.distribution]\nenable_tls = 'true'",
            "security.distribution.enable_tls",
            "must be true or false",
        ),
        ("[security]\nmode = true", "security.mode", "must be one of production, hybrid, development"),
        ("[cluster]\non_exit = 'restart'", "cluster.on_exit", "'restart' is not known here"),
        ("[cluster]\nstart_parallel = true", "cluster.start_parallel", "must be a whole number from 1 to 64"),
        ("[cluster]\nstart_parallel = 0", "cluster.start_parallel", "must be a whole number from 1 to 64"),
        ("[cluster]\nstart_parallel = 1.5", "cluster.start_parallel", "must be a whole number"),
        (
            "[cluster]\nstop_deadline_seconds = inf",
            "cluster.stop_deadline_seconds",
            "must be a number of seconds",
        ),
        (
            "[cluster]\nstop_deadline_seconds = nan",
            "cluster.stop_deadline_seconds",
            "must be a number of seconds",
        ),
        (
            "[cluster]\nstop_deadline_seconds = -1",
            "cluster.stop_deadline_seconds",
            "must be a number of seconds",
        ),
        (
            "[cluster]\nstart_deadline_seconds = 0",
            "cluster.start_deadline_seconds",
            "must be a number of seconds",
        ),
        ("[cluster]\nstate_dir = ''", "cluster.state_dir", "must be a path"),
        ("[cluster]\nstate_dir = '~/state'", "cluster.state_dir", "~ is not expanded"),
        ('[cluster]\nstate_dir = "a\\nb"', "cluster.state_dir", "without control characters"),
        ("[certificates]\ndays = 0", "certificates.days", "must be a whole number"),
        ("[certificates]\nlifetime_seconds = 19", "certificates.lifetime_seconds", "from 20 to"),
        ("[certificates]\nrenew_before_seconds = 0", "certificates.renew_before_seconds", "from 1 to"),
        ("[certificates]\nrenew_jitter_seconds = -1", "certificates.renew_jitter_seconds", "from 0 to"),
        ("[certificates]\nrecycle_links = 1", "certificates.recycle_links", "true or false"),
        ("[logging]\nmax_bytes = 1", "logging.max_bytes", "must be a whole number"),
        ("[metrics]\nlisten = 2026-01-01", "metrics.listen", "must be a text"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(
    only: Callable[..., Problem], text: str, key: str, what: str
) -> None:
    problem = only(text)
    assert problem.key == key
    assert what in problem.what
    assert problem.line == (2 if "\n" in text and key != "nodes" else 1)


def test_a_file_with_thousands_of_problems_says_how_many_more(problems: Problems) -> None:
    found = problems("\n".join(f"unknown{index} = 1" for index in range(MAX_PROBLEMS + 7)))
    assert len(found) == MAX_PROBLEMS + 1
    assert found[-1].what == "and 7 more problems"


def test_takes_a_thousand_nodes_and_no_more(spec: Parse, problems: Problems) -> None:
    def nodes(count: int) -> str:
        names = [f"n{index}@127.0.0.1" for index in range(count)]
        tables = "\n".join(f'[[nodes]]\nname = "{name}"' for name in names)
        return f"[security.distribution]\nallowed_nodes = {names[:1000]}\n{tables}"

    assert len(spec(nodes(1000)).nodes) == 1000
    assert problems(nodes(1001))[0].what == "has more than 1000 entries"


# ---- finding the file


def test_the_option_wins_over_the_variable_and_both_over_the_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "distsec.toml").touch()
    assert find_config("option.toml", {"DISTSEC_CONFIG": "/variable.toml"}) == tmp_path / "option.toml"
    assert find_config(None, {"DISTSEC_CONFIG": "/variable.toml"}) == Path("/variable.toml")
    assert find_config(None, {"DISTSEC_CONFIG": ""}) == tmp_path / "distsec.toml"


def test_says_where_it_looked_when_there_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if Path("/etc/distsec/distsec.toml").exists():
        pytest.skip("this machine has a configuration of its own")
    with pytest.raises(
        ConfigError, match=r"neither distsec\.toml nor /etc/distsec/distsec\.toml.*distsec init"
    ):
        find_config(None, {})


def test_loads_a_file_and_puts_its_paths_beside_it(short_path: Path) -> None:
    file = short_path / "distsec.toml"
    file.write_text(FULL)
    cluster = load(file, {"HOME": "/root"})
    assert cluster.state_dir == str(short_path / "state")
    assert cluster.config_file == str(file)


def test_a_relative_path_is_seen_from_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "distsec.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert load(Path("distsec.toml"), {}).state_dir == str(tmp_path / "state")


def test_a_role_of_nobody_is_refused(only: Callable[..., Problem]) -> None:
    text = '[[security.rbac.roles]]\nidentity = ""\npermissions = []'
    assert only(text).key == "security.rbac.roles[0].identity"


def test_a_life_of_less_than_a_day_is_given_in_seconds(spec: Parse) -> None:
    cluster = spec("[certificates]\nlifetime_seconds = 60")
    assert cluster.certificate_days * 86_400 == 60
    assert (cluster.renew_before_seconds, cluster.recycle_links) == (None, False)


def test_two_lives_are_one_too_many(only: Callable[..., Problem]) -> None:
    problem = only("[certificates]\ndays = 1\nlifetime_seconds = 60")
    assert (problem.key, problem.line) == ("certificates.lifetime_seconds", 3)
    assert "and so does days" in problem.what


@pytest.mark.parametrize("life", ["days = 10", "lifetime_seconds = 60"])
def test_a_renewal_that_would_be_due_at_once_is_refused(only: Callable[..., Problem], life: str) -> None:
    problem = only(f"[certificates]\n{life}\nrenew_before_seconds = 864000")
    assert problem.key == "certificates.renew_before_seconds"
    assert "more than half of the certificates' life" in problem.what
