from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field, SecretStr

from services.rpckit.settings import Address, BadSettingsError, ServiceSettings


class Settings(ServiceSettings):
    service: ClassVar[str] = "constraint"

    worker_address: Address = Field("127.0.0.1:50061", description="Where the worker is.")
    redis_url: str | None = Field(None, description="Where Redis is.")
    key: SecretStr | None = Field(None, description="A secret.")
    num_threads: int = Field(2, ge=1, le=64, description="Threads.")


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ADDRESS", "WORKER_ADDRESS", "REDIS_URL", "LOG_LEVEL", "CONFIG", "CONSTRAINT_WORKER_ADDRESS"):
        monkeypatch.delenv(f"ESPALIER_{name}", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "espalier.toml"
    path.write_text('log_level = "error"\n[constraint]\nnum_threads = 9\nworker_address = "file:1"\n[worker]\nx = 1\n')
    return path


def test_defaults() -> None:
    assert Settings.read([]).worker_address == "127.0.0.1:50061"


def test_flags_beat_environment_beats_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_CONFIG", str(file))
    assert Settings.read([]).worker_address == "file:1"
    assert Settings.read([]).log_level == "error"
    assert Settings.read([]).num_threads == 9
    monkeypatch.setenv("ESPALIER_WORKER_ADDRESS", "shared:2")
    assert Settings.read([]).worker_address == "shared:2"
    monkeypatch.setenv("ESPALIER_CONSTRAINT_WORKER_ADDRESS", "own:3")
    assert Settings.read([]).worker_address == "own:3"
    assert Settings.read(["--worker-address", "flag:4"]).worker_address == "flag:4"


def test_an_address_of_its_own_is_never_taken_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_ADDRESS", "other:1")
    assert Settings.read([]).address == "127.0.0.1:0"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--nope", "3"], "unrecognized arguments: --nope 3"),
        (["--num-threads", "0"], "must be greater than or equal to 1, not '0' (set by --num-threads"),
        (["--num-threads", "many"], "ESPALIER_CONSTRAINT_NUM_THREADS"),
        (["--log-level", "loud"], "'debug', 'info', 'warning' or 'error'"),
        (["--address", "nowhere"], "host:port"),
        (["--address", "h:70000"], "0 to 65535"),
        (["--address", "unix:" + "x" * 108], "107 bytes"),
        (["--config", "/nonexistent.toml"], "cannot read the settings file /nonexistent.toml: No such file"),
    ],
)
def test_bad_flags_name_the_setting_and_what_is_allowed(argv: list[str], says: str) -> None:
    with pytest.raises(BadSettingsError) as caught:
        Settings.read(argv)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("num_threads = 3", "put it under [constraint]"),
        ("[constraint]\nthreads = 3", "no setting is called `threads`"),
        ("[constraint", "not TOML"),
        ("constraint = 3", "must be a table"),
        ("[constraint]\nnum_threads = 100", "less than or equal to 64"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(BadSettingsError) as caught:
        Settings.read(["--config", str(path)])
    assert says in str(caught.value)


def test_load_ends_the_process_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        Settings.load(["--num-threads", "0"])
    assert caught.value.code == 2
    assert "num_threads" in capsys.readouterr().err


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_CONSTRAINT_KEY", "hush")
    settings = Settings.read(["--redis-url", "redis://user:hush@host:6379/0"])
    assert settings.key is not None
    assert "hush" not in repr(settings.describe())
    assert settings.describe()["redis_url"] == "redis://user:**********@host:6379/0"


def test_a_misspelt_variable_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_CONSTRAINT_NUMTHREADS", "3")
    monkeypatch.setenv("ESPALIER_CONSTRAINT_NUM_THREADS", "3")
    assert Settings.read([]).unknown_variables() == ["ESPALIER_CONSTRAINT_NUMTHREADS"]
