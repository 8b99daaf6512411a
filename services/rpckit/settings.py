"""Settings of a service: flags over environment over a TOML file over defaults, typed, and printed without secrets.

A service named `constraint` reads `--worker-address`, then `ESPALIER_CONSTRAINT_WORKER_ADDRESS`, then
`ESPALIER_WORKER_ADDRESS` (only for the names in `SHARED_NAMES`, which mean the same to every service), then
`worker_address` in the table `[constraint]` of the file, then a shared name at the file's top level.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, FilePath, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from services.rpckit.bad_settings import BadSettingsError

SHARED_NAMES = frozenset(
    {
        "worker_address",
        "constraint_address",
        "gateway_address",
        "redis_url",
        "model",
        "config",
        "log_level",
        "log_format",
        "drain_s",
        "trace_max_spans",
        "health_address",
        "tls_cert_file",
        "tls_key_file",
        "tls_client_ca_file",
        "peer_ca_file",
        "peer_cert_file",
        "peer_key_file",
    }
)
"""Settings that mean the same to every service, so that `ESPALIER_<NAME>` may give them to all at once."""

BAD_SETTINGS_EXIT_CODE = 2


def check_address(value: str) -> str:
    """Return the address as it is.

    Raises:
        ValueError: it is none; says what is.
    """
    if value.startswith("unix:"):
        # 107 bytes is what the kernel's sockaddr_un holds.
        if not value.removeprefix("unix:"):
            raise ValueError("a path must follow `unix:`")
        if len(os.fsencode(value.removeprefix("unix:"))) > 107:
            raise ValueError("the path of a unix socket may have at most 107 bytes")
        return value
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\s/]+):(\d{1,5})", value)
    if match is None or int(match[2]) > 65535:
        raise ValueError("must be `host:port`, `[ipv6]:port` or `unix:/path`, with a port from 0 to 65535")
    return value


Address = Annotated[str, AfterValidator(check_address)]
"""Where a server listens or is found: `host:port`, `[ipv6]:port` or `unix:/path`."""


def _check_readable(path: Path) -> Path:
    if not os.access(path, os.R_OK):
        raise ValueError("must be a file that this process may read")
    return path


PemFile = Annotated[FilePath, AfterValidator(_check_readable)]
"""A file with certificates or a private key."""


class ServiceSettings(BaseSettings):
    """What every service can be told. A subclass sets `service` and adds fields, each with a `description`."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        protected_namespaces=(),
        cli_kebab_case=True,
        cli_exit_on_error=False,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
    )

    service: ClassVar[str] = ""
    """Name in flags' help, environment variables and the file's table, for example `constraint`."""
    starts_traces: ClassVar[bool] = False
    """Whether a call that is part of no trace begins one here."""

    config: Path | None = Field(None, description="TOML file with settings (also ESPALIER_CONFIG).")
    address: Address = Field(
        "127.0.0.1:0", description="Where to listen: host:port (port 0 picks a free one) or unix:/path."
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Port of the Prometheus endpoint; absent: none; 0 picks a free one."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe messages to log.")
    log_format: Literal["json", "text"] = Field("json", description="One JSON object a line, or text for people.")
    drain_s: float = Field(10.0, ge=0, le=3600, description="Seconds that open calls may take to end after SIGTERM.")
    trace_max_spans: int = Field(
        1000, ge=0, le=1_000_000, description="Steps or moves of one traced call that get a span; the rest is counted."
    )
    health_address: Address | None = Field(
        None, description="Second address, in plain text, of health alone: for probes that speak no TLS. Absent: none."
    )
    tls_cert_file: PemFile | None = Field(
        None, description="PEM file of the server's certificate; renewed ones are noticed. Absent: plain text."
    )
    tls_key_file: PemFile | None = Field(None, description="PEM file of the private key of that certificate.")
    tls_client_ca_file: PemFile | None = Field(
        None, description="PEM file of authorities of clients, which then must show a certificate."
    )

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_cert_file is None) is not (self.tls_key_file is None):
            raise ValueError("`tls_cert_file` and `tls_key_file` go together")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError("`tls_client_ca_file` needs `tls_cert_file` and `tls_key_file`")
        return self

    max_connection_age_s: float | None = Field(
        None,
        ge=1,
        le=86400,
        description="Connections are renewed when so old, so that clients move to new replicas; absent: never.",
    )

    @classmethod
    def load(cls, argv: Sequence[str] | None = None) -> Self:
        """Read the settings, or end the process: code 2 with a message for bad ones, 0 for `--help`.

        `argv` is without the program's name; `None` takes the process's own.
        """
        try:
            return cls.read(sys.argv[1:] if argv is None else argv)
        except BadSettingsError as error:
            print(error, file=sys.stderr)
            raise SystemExit(BAD_SETTINGS_EXIT_CODE) from None

    @classmethod
    def read(cls, argv: Sequence[str]) -> Self:
        """Read the settings as `load` does.

        Raises:
            BadSettingsError: for bad ones.
        """
        try:
            return cls(_cli_parse_args=list(argv), _cli_prog_name=f"python -m {cls.__module__.rpartition('.')[0]}")
        except ValidationError as error:
            lines = [cls._explain(str(item["loc"][0]) if item["loc"] else "", item) for item in error.errors()]
            raise BadSettingsError("\n".join(lines)) from None
        except SettingsError as error:
            text = str(error).removeprefix("error parsing CLI: ")
            raise BadSettingsError(f"espalier {cls.service}: {text}; `--help` lists all flags") from None

    @classmethod
    def _explain(cls, name: str, item: Any) -> str:
        if not name:  # several settings do not fit together
            return f"espalier {cls.service}: {str(item['msg']).removeprefix('Value error, ')}"
        field = cls.model_fields.get(name)
        if field is None:
            known = ", ".join(sorted(cls.model_fields))
            return f"espalier {cls.service}: no setting is called `{name}`; there are: {known}"
        if item["type"] == "missing":
            item = item | {"msg": "must be given"}
        given = "" if "Secret" in str(field.annotation) or item["type"] == "missing" else f", not {item['input']!r}"
        message = str(item["msg"]).removeprefix("Value error, ")
        message = re.sub(r"^Input should be", "must be", message)
        places = f"--{name.replace('_', '-')}, {cls.variables(name)[0]} or `{name}` under [{cls.service}] in the file"
        return f"espalier {cls.service}: setting `{name}`: {message}{given} (set by {places})"

    @classmethod
    def variables(cls, name: str) -> list[str]:
        """Name the environment variables that may set a field, strongest first."""
        own = f"ESPALIER_{cls.service}_{name}".upper()
        return [own, f"ESPALIER_{name}".upper()] if name in SHARED_NAMES else [own]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources, strongest first (pydantic-settings puts flags before all of them)."""
        assert isinstance(init_settings, InitSettingsSource)
        return (init_settings, _ServiceEnvironment(settings_cls), _TomlFile(settings_cls, init_settings))

    def unknown_variables(self) -> list[str]:
        """Name `ESPALIER_<SERVICE>_*` variables that set nothing: most likely spelling mistakes, worth a warning.

        No error, because Kubernetes sets such variables for a Service of that name.
        """
        prefix = f"ESPALIER_{self.service}_".upper()
        known = {variable for name in type(self).model_fields for variable in self.variables(name)}
        return sorted(key for key in os.environ if key.upper().startswith(prefix) and key.upper() not in known)

    def describe(self) -> dict[str, Any]:
        """Show every setting as plain JSON values, secrets as stars and passwords in URLs blotted out."""
        shown: dict[str, Any] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, SecretStr | Path):
                value = str(value)
            if isinstance(value, str):
                value = re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:**********@", value)
            shown[name] = value
        return shown


class PeerSettings(ServiceSettings):
    """What a service that calls others of ours can be told about the way to them."""

    peer_ca_file: PemFile | None = Field(
        None, description="PEM file of authorities that the other services' certificates are of. Absent: plain text."
    )
    peer_cert_file: PemFile | None = Field(
        None, description="PEM file of the certificate shown to services that ask for one; read at start."
    )
    peer_key_file: PemFile | None = Field(None, description="PEM file of the private key of that certificate.")

    @model_validator(mode="after")
    def _check_peer_tls(self) -> Self:
        if (self.peer_cert_file is None) is not (self.peer_key_file is None):
            raise ValueError("`peer_cert_file` and `peer_key_file` go together")
        if self.peer_cert_file is not None and self.peer_ca_file is None:
            raise ValueError("`peer_cert_file` needs `peer_ca_file`")
        return self


class _ServiceEnvironment(PydanticBaseSettingsSource):
    """`ESPALIER_<SERVICE>_<NAME>`, then for shared names `ESPALIER_<NAME>`."""

    settings_cls: type[ServiceSettings]

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Take the first variable that is set."""
        for variable in self.settings_cls.variables(field_name):
            if variable in os.environ:
                return os.environ[variable], field_name, False
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


class _TomlFile(PydanticBaseSettingsSource):
    """The file named by `--config`, or by the environment: the service's table over shared names at the top level."""

    settings_cls: type[ServiceSettings]

    def __init__(self, settings_cls: type[BaseSettings], init_settings: InitSettingsSource) -> None:
        super().__init__(settings_cls)
        self._init_settings = init_settings

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Not used: `__call__` answers for all fields at once."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        # `current_state` holds what stronger sources said, flags among it.
        path = self.current_state.get("config")
        if path is None:
            return {}
        service = self.settings_cls.service
        try:
            document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise BadSettingsError(
                f"espalier {service}: cannot read the settings file {path}: {error.strerror}"
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadSettingsError(f"espalier {service}: the settings file {path} is not TOML: {error}") from None
        own = document.get(service, {})
        if not isinstance(own, dict):
            raise BadSettingsError(f"espalier {service}: `{service}` in {path} must be a table, `[{service}]`")
        shared = {key: value for key, value in document.items() if not isinstance(value, dict)}
        if unknown := sorted(set(shared) - SHARED_NAMES):
            raise BadSettingsError(
                f"espalier {service}: {path}: `{unknown[0]}` cannot stand outside a table; put it under [{service}] "
                f"(only these may: {', '.join(sorted(SHARED_NAMES - {'config'}))})"
            )
        fields = self.settings_cls.model_fields
        return {key: value for key, value in shared.items() if key in fields} | own


__all__ = ["SHARED_NAMES", "Address", "BadSettingsError", "PeerSettings", "ServiceSettings"]
