"""What the environment may say, and how a start fails."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from api import main
from api.errors import StartupError
from api.settings import database_url, settings_from
from tests.conftest import free_ports

GOOD = {
    "NINAIVALAIGAL_DATABASE_URL": "postgresql://nina:hunter2@127.0.0.1:6432/nina",
    "NINAIVALAIGAL_JWT_SECRET": "the-secret",
}


def test_defaults() -> None:
    settings = settings_from(GOOD)
    assert settings.database_url == GOOD["NINAIVALAIGAL_DATABASE_URL"]
    assert (settings.memory_provider, settings.log_level) == ("native", "INFO")
    assert not any(secret in repr(settings) for secret in ("hunter2", "the-secret"))


def test_the_specific_url_wins() -> None:
    specific, general = "postgresql://a@h/specific", "postgres://a@h/general"
    both = {"NINAIVALAIGAL_DATABASE_URL": specific, "DATABASE_URL": general}
    assert database_url(both) == specific
    assert database_url({**both, "NINAIVALAIGAL_DATABASE_URL": ""}) == general


@pytest.mark.parametrize(
    ("level", "debug", "result"),
    [("warning", "", "WARNING"), ("", "0", "INFO"), ("ERROR", "1", "DEBUG"), ("", "True", "DEBUG")],
)
def test_debug_overrules_the_log_level(level: str, debug: str, result: str) -> None:
    assert settings_from({**GOOD, "LOG_LEVEL": level, "NINAIVALAIGAL_DEBUG": debug}).log_level == result


@pytest.mark.parametrize(
    ("given", "level"),
    [("warn", "WARNING"), ("TRACE", "DEBUG"), ("fatal", "CRITICAL"), ("20", "INFO"), ("25", "WARNING")],
)
def test_a_level_of_python_s_or_uvicorn_s_is_the_nearest_one(given: str, level: str) -> None:
    assert settings_from({**GOOD, "LOG_LEVEL": given}).log_level == level


REFUSED = [
    ({"NINAIVALAIGAL_DATABASE_URL": ""}, "NINAIVALAIGAL_DATABASE_URL is not set"),
    ({"NINAIVALAIGAL_DATABASE_URL": "mysql://nina:hunter2@h/nina"}, "does not start with postgresql://"),
    ({"NINAIVALAIGAL_DATABASE_URL": "host=h password=hunter2"}, "does not start with postgresql://"),
    ({"NINAIVALAIGAL_DATABASE_URL": "postgresql://nina:hunter2%zz@h/nina"}, "not a valid URL"),
    ({"NINAIVALAIGAL_DATABASE_URL": "postgresql://nina:hunter2@[h/nina"}, "not a valid URL"),
    ({"NINAIVALAIGAL_JWT_SECRET": ""}, "NINAIVALAIGAL_JWT_SECRET is not set"),
    ({"MEMORY_PROVIDER": "redis"}, "MEMORY_PROVIDER is 'redis', which is not one of: native"),
    ({"LOG_LEVEL": "LOUD"}, "LOG_LEVEL is 'LOUD', which is not one of: CRITICAL, ERROR, WARNING, INFO, DEBUG"),
    ({"NINAIVALAIGAL_DEBUG": "maybe"}, "NINAIVALAIGAL_DEBUG is 'maybe'"),
]


@pytest.mark.parametrize(("change", "why"), REFUSED)
def test_a_wrong_environment_ends_the_start_in_one_line(change: dict[str, str], why: str) -> None:
    with pytest.raises(StartupError) as caught, TestClient(main.create_app({**GOOD, **change})):
        pass
    message = str(caught.value)
    assert why in message
    assert "\n" not in message
    assert "hunter2" not in message
    assert caught.value.__cause__ is None


def test_no_database_ends_the_start_in_one_line() -> None:
    nowhere = f"postgresql://nina:hunter2@127.0.0.1:{free_ports(1)[0]}/nina"
    with (
        pytest.raises(StartupError) as caught,
        TestClient(main.create_app({**GOOD, "NINAIVALAIGAL_DATABASE_URL": nowhere})),
    ):
        pass
    message = str(caught.value)
    assert message.startswith("the database does not answer: ")
    assert "Connection refused" in message
    assert "\n" not in message
    assert "hunter2" not in message
