"""What is required, what is defaulted, what is refused, and whom it concerns."""

from __future__ import annotations

import pytest

from serviceradar_poller.config.loading import parse
from serviceradar_poller.config.model import AGENTS_MAX, CheckConfig, LoggingConfig
from serviceradar_poller.testing.configs import (
    agent_problem,
    build,
    build_agent,
    only_problem,
    problems,
    warned_at,
    warnings,
)


def test_minimal_document_gets_every_default() -> None:
    """Three keys and an interval suffice, and give no warning."""
    parsed = build()
    config = parsed.config
    assert parsed.warnings == ()
    assert (config.partition, config.source_ip, config.listen_addr) == ("default", "auto", "")
    assert config.security is None
    assert config.agents[0].security is None
    assert config.logging == LoggingConfig()
    assert config.scheduling.check_timeout_s == 30
    assert config.scheduling.spread_window_s == 0.25
    assert config.reporting.deadline_s == 5
    assert config.http.listen_addr == "127.0.0.1:9610"
    assert config.http.control is False


def test_required_keys_come_first_in_order() -> None:
    """The fixed texts stand before every other problem, in the order in which Go checks."""
    found = problems(core_address="", poller_id=None, agents={}, workers=3)
    assert [problem.text for problem in found] == [
        "core address is required",
        "poller id is required",
        "agent address is required",
        "",
    ]


def test_more_agents_than_one_poller_takes_are_refused() -> None:
    """The bound is inclusive; one agent more is one line that says what to do, not a start that fails half way."""
    agents = {f"agent-{index}": {"address": "127.0.0.1:50051"} for index in range(AGENTS_MAX + 1)}
    problem = only_problem(agents=agents)
    assert (problem.path, problem.found) == ("agents", "20,001 agents")
    assert problem.accepted == "at most 20,000: a larger site needs a second poller"
    agents.popitem()
    assert len(build(agents=agents).config.agents) == AGENTS_MAX


def test_keys_match_in_any_case() -> None:
    """Keys are matched without regard to case at every level."""
    text = (
        '{"CORE_Address":"c:1","Poller_Id":"p","AGENTS":{"A":{"Address":"a:1",'
        '"CHECKS":[{"Service_Type":"icmp","SERVICE_NAME":"n"}]}}}'
    )
    config = parse(text, "x").config
    assert config.agents[0].name == "A"
    assert config.agents[0].checks == (CheckConfig(service_type="icmp", service_name="n"),)


def test_unknown_keys_are_ignored_outside_our_sections() -> None:
    """Keys of other programs in a shared file say nothing."""
    assert build(service_type="grpc", core_security={"mode": 1}, reprting=1).warnings == ()


@pytest.mark.parametrize(
    ("section", "path", "hint"),
    [
        ({"scheduling": {"check_timout": "1s"}}, "scheduling.check_timout", "did you mean check_timeout?"),
        (
            {"resilience": {"breaker": {"Failure": 1}}},
            "resilience.breaker.failure",
            "did you mean failures?",
        ),
        ({"http": {"zzz": 1}}, "http.zzz", "known are listen_addr, control"),
    ],
)
def test_unknown_keys_in_our_sections_are_told(section: dict[str, object], path: str, hint: str) -> None:
    """A typo in a section of ours is a warning that names what was probably meant."""
    assert warnings(build(**section)) == [(path, f"unknown key, ignored: {hint}")]


@pytest.mark.parametrize(
    ("changes", "path", "found"),
    [
        ({"core_address": 5}, "core_address", "5"),
        ({"poller_id": ["p"]}, "poller_id", "a list"),
        ({"agents": []}, "agents", "a list"),
        ({"logging": "info"}, "logging", '"info"'),
        ({"logging": {"debug": "yes"}}, "logging.debug", '"yes"'),
        ({"security": []}, "security", "a list"),
        ({"workers": 1.0}, "workers", "1.0"),
        ({"workers": True}, "workers", "true"),
        ({"reporting": {"batch_size": 0}}, "reporting.batch_size", "0"),
        ({"reporting": {"queue_bytes": 2**63}}, "reporting.queue_bytes", str(2**63)),
        ({"resilience": {"retry": {"attempts": 1000}}}, "resilience.retry.attempts", "1000"),
        ({"resilience": {"retry": {"budget_ratio": 1.5}}}, "resilience.retry.budget_ratio", "1.5"),
        ({"scheduling": {"connects_per_s": 10**400}}, "scheduling.connects_per_s", "inf"),
        ({"scheduling": {"connects_per_s": 0}}, "scheduling.connects_per_s", "0.0"),
        ({"scheduling": {"check_timeout": "-1s"}}, "scheduling.check_timeout", '"-1s"'),
        ({"poll_interval": "-1s"}, "poll_interval", '"-1s"'),
        ({"poll_interval": None}, "poll_interval", "null"),
        ({"listen_addr": "50053"}, "listen_addr", '"50053"'),
        ({"listen_addr": ":99999"}, "listen_addr", '":99999"'),
        ({"http": {"listen_addr": "nowhere"}}, "http.listen_addr", '"nowhere"'),
        ({"reporting": {"mode": "odd"}}, "reporting.mode", '"odd"'),
        ({"reporting": {"deadline": "30s"}}, "reporting.deadline", "30s"),
        ({"scheduling": {"spread_window": "31s"}}, "scheduling.spread_window", "31s"),
        ({"resilience": {"reconnect": {"min": "1m"}}}, "resilience.reconnect", "min 1m, max 30s"),
        ({"resilience": {"quarantine": {"max": "10ms"}}}, "resilience.quarantine", "min 1s, max 10ms"),
        ({"logging": {"level": "loud"}}, "logging.level", '"loud"'),
    ],
)
def test_problem_outside_agents_is_fatal(changes: dict[str, object], path: str, found: str) -> None:
    """A wrong type or value outside the agents is the one problem, at its path, with what stands there."""
    problem = only_problem(**changes)
    assert (problem.source, problem.path) == ("poller.json", path)
    assert problem.found.startswith(found[:50])
    assert problem.accepted


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        ("10", 'time: missing unit in duration "10"'),
        ("", 'time: invalid duration ""'),
        (None, "invalid duration"),
        (True, "invalid duration"),
    ],
)
def test_bad_duration_has_the_text_of_go(value: object, text: str) -> None:
    """A duration that Go refuses is refused in Go's words."""
    assert only_problem(poll_interval=value).text == text


def test_all_problems_come_at_once() -> None:
    """A fatal problem brings the agents' ones along."""
    found = problems(workers=4, agents={"a": {"address": ""}, "b": 7})
    assert [problem.path for problem in found] == ["agents.b", "agents.a.address", "workers"]


@pytest.mark.parametrize(
    ("members", "path"),
    [
        ({"address": ""}, "agents.edge.address"),
        ({"address": " "}, "agents.edge.address"),
        ({"address": None}, "agents.edge.address"),
        ({"address": 5}, "agents.edge.address"),
        ({"checks": {}}, "agents.edge.checks"),
        ({"checks": [{"port": 2**31}]}, "agents.edge.checks[0].port"),
        ({"checks": [{"port": 1e3}]}, "agents.edge.checks[0].port"),
        ({"checks": [1]}, "agents.edge.checks[0]"),
        ({"checks": [{"results_interval": "10"}]}, "agents.edge.checks[0].results_interval"),
        ({"security": 1}, "agents.edge.security"),
        ({"security": {"mode": "tls"}}, "agents.edge.security.mode"),
        ({"security": {"mode": 1}}, "agents.edge.security.mode"),
        ({"security": {"mode": "spiffe"}}, "agents.edge.security.mode"),
        ({"security": {"mode": "none", "role": "boss"}}, "agents.edge.security.role"),
        ({"security": {"mode": "none", "tls": {"ca_file": []}}}, "agents.edge.security.tls.ca_file"),
    ],
)
def test_problem_inside_an_agent_stays_there(members: dict[str, object], path: str) -> None:
    """One agent's mistake leaves the configuration usable and the other agent whole."""
    problem = agent_problem(build_agent(**members))
    assert problem.path == path


def test_good_checks_of_a_broken_agent_are_listed() -> None:
    """An agent with a bad check keeps its others, so that each has an outcome."""
    edge = build_agent(
        checks=[
            {"service_type": "icmp", "service_name": "one"},
            {"service_type": 3, "service_name": "two"},
            {"service_type": "icmp", "service_name": "three"},
        ]
    ).config.agents[0]
    assert [check.service_name for check in edge.checks] == ["one", "three"]
    assert edge.problems[0].path == "agents.edge.checks[1].service_type"


def test_agent_that_is_no_object_has_one_problem() -> None:
    """An agent of the wrong type is told once, not for each missing key as well."""
    edge = build(agents={"edge": 5}).config.agents[0]
    assert [str(problem) for problem in edge.problems] == ["poller.json: agents.edge: found 5; accepted: an object"]


def test_agent_without_a_name_is_refused() -> None:
    """The empty name can't be an agent's id."""
    agent = build(agents={"": {"address": "a:1"}}).config.agents[0]
    assert [problem.path for problem in agent.problems] == ['agents[""]']


def test_odd_agent_names_are_quoted() -> None:
    """A name with a point is one step of the path."""
    agent = build(agents={"a.b": {}}).config.agents[0]
    assert agent.problems[0].path == 'agents["a.b"].address'


def test_secrets_are_hidden() -> None:
    """What stands under a key that may hold a secret never shows; what stands elsewhere does, shortened."""
    found = problems(
        logging={"otel": {"headers": {"x": 31337}, "endpoint": 1}},
        security={"tls": {"key_file": 5}, "mode": "m" * 500},
    )
    shown = {problem.path: problem.found for problem in found}
    assert shown["logging.otel.headers.x"] == "***"
    assert shown["security.tls.key_file"] == "5"
    assert len(shown["security.mode"]) == 60
    assert "m" * 61 not in str(found)


def test_agent_names_do_not_hide_values() -> None:
    """An agent called monkey is not a secret."""
    agent = build(agents={"monkey": {"address": 5}}).config.agents[0]
    assert agent.problems[0].found == "5"


def test_nanoseconds_below_a_second_are_told() -> None:
    """A bare small number is nearly always a mistake; what would spin is raised."""
    parsed = build(poll_interval=30)
    assert parsed.config.poll_interval_s == 0.01
    assert warned_at(parsed) == ["poll_interval", "poll_interval"]
    assert "30ns" in parsed.warnings[0].text
    assert build(poll_interval=30 * 10**9).warnings == ()


@pytest.mark.parametrize("value", [0, "0s", "0"])
def test_interval_of_zero_is_the_default(value: object) -> None:
    """Zero, like absence, is five minutes, at which core would call the poller offline."""
    parsed = build(poll_interval=value)
    assert parsed.config.poll_interval_s == 300
    assert warned_at(parsed) == ["poll_interval"]


def test_results_interval_makes_a_results_check() -> None:
    """Present, even zero, it makes a results check; null does not; a negative one counts as zero."""
    intervals: list[object] = ["10m", "0s", None, "-1s"]
    checks = [
        {"service_type": "sync", "service_name": f"n{i}", "results_interval": value}
        for i, value in enumerate(intervals)
    ]
    parsed = build_agent(checks=checks)
    assert [check.results_interval_s for check in parsed.config.agents[0].checks] == [600, 0, None, 0]
    assert warned_at(parsed) == ["agents.edge.checks[3].results_interval"]


def test_odd_checks_are_told() -> None:
    """Nameless checks, ports that are none, and repetitions within one agent are warnings."""
    check = {"service_type": "icmp", "service_name": "ping"}
    parsed = build_agent(checks=[None, {**check, "port": 70000}, check])
    assert warned_at(parsed) == [
        "agents.edge.checks[0].service_type",
        "agents.edge.checks[0].service_name",
        "agents.edge.checks[1].port",
        "agents.edge.checks",
    ]
    assert len(parsed.config.agents[0].checks) == 3


@pytest.mark.parametrize("address", ["10.0.0.1", "host", "fe80::1:50051", "a..b:1", "unix:///x", "127.0.0.1:99999"])
def test_an_address_that_can_never_work_is_refused(address: str) -> None:
    """An agent's keeps that agent down; core's, without which nothing is of use, is refused at the start."""
    (agent,) = build(agents={"a": {"address": address}}).config.agents
    assert [problem.path for problem in agent.problems] == ["agents.a.address"]
    assert only_problem(core_address=address).path == "core_address"


@pytest.mark.parametrize("address", [":50051", "[::1]:50051", "host:1", " host:1 ", "dns:///host:50051"])
def test_usual_addresses_are_silent(address: str) -> None:
    """Addresses as they are in use give no warning."""
    assert build(agents={"a": {"address": address}}).warnings == ()


@pytest.mark.parametrize(
    ("given", "level"),
    [(None, "info"), ("", "info"), ("WARNING", "warn"), ("Trace", "trace"), ("disabled", "disabled")],
)
def test_levels(given: object, level: str) -> None:
    """Levels are taken in any case; null and empty are info."""
    assert build(logging={"level": given}).config.logging.level == level


def test_logging_null_is_the_default() -> None:
    """A null block logs at info to stdout."""
    assert build(logging=None).config.logging == LoggingConfig()


def test_unknown_output_is_stdout_with_a_warning() -> None:
    """Lines that have nowhere to go go to stdout."""
    parsed = build(logging={"output": "file"})
    assert parsed.config.logging.output == "stdout"
    assert warned_at(parsed) == ["logging.output"]


def test_kv_store_id_prefers_the_domain() -> None:
    """Statuses name the KV domain, else its address."""
    assert build(kv_address="kv:1").config.kv_store_id == "kv:1"
    assert build(kv_address="kv:1", kv_domain="hub").config.kv_store_id == "hub"
