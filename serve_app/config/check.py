"""Checks a whole serve_config.yaml and names the line of what is wrong (`darkroom config check`).

Serve ignores keys that it doesn't know, at the top of the file and in http_options: a misspelt one starts a
service that listens on all interfaces. Here every key of the file must be known, and an address that other machines
can reach needs API keys, or to be told that it doesn't. No Ray and no torch, so that it is fast.
"""

import ipaddress
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deployments.engine.adapters.lora_folder import LoraFolder
from deployments.engine.checkpoints.files import is_hub_id, resolve_source
from deployments.engine.checkpoints.weight_folder import find_folder
from deployments.engine.errors import CheckpointError, LoraRefused
from serve_app.auth.keys import BadKeys, KeyRing
from serve_app.config.claims import Claims
from serve_app.config.settings import Settings
from serve_app.webhooks.signing import BadSecrets, SigningSecrets


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HttpOptions(_Part):
    """Serve's HTTP proxy. host is required here, because Serve's own default is every interface."""

    host: str = Field(min_length=1)
    port: int = Field(default=8000, ge=1, le=65_535)
    root_path: str = ""
    request_timeout_s: float | None = Field(default=None, gt=0.0)  # Serve takes 0 for "at once"
    keep_alive_timeout_s: int = Field(default=90, ge=1)
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile_password: str | None = None
    ssl_ca_certs: str | None = None


class LoggingConfig(_Part):
    """Serve's log files and what goes to the terminal."""

    encoding: Literal["TEXT", "JSON"] = "TEXT"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    logs_dir: str | None = None
    enable_access_log: bool = True
    additional_log_standard_attrs: tuple[str, ...] = ()


class TracingConfig(_Part):
    """OpenTelemetry spans."""

    enabled: bool = False
    exporter_import_path: str = ""
    sampling_ratio: float = Field(default=1.0, ge=0.0, le=1.0)


class Application(_Part):
    """An application; Serve's `deployments:` has no place here, what it would say is in args.stages."""

    name: str = Field(min_length=1)
    route_prefix: str = Field(default="/", pattern="^/")
    import_path: Literal["serve_app.app:build"]
    runtime_env: dict[str, Any] = {}
    args: Settings
    logging_config: LoggingConfig | None = None


_NEEDS_KEYS = (
    "can be reached from other machines: name API keys in args.access.keys_file "
    "(`python -m serve_app.auth.make_key` makes them), or say args.access.open_to_all: true"
)


class ServeFile(_Part):
    """The whole file, as `serve run` and `serve deploy` take it."""

    proxy_location: Literal["Disabled", "HeadOnly", "EveryNode"] = "EveryNode"
    http_options: HttpOptions
    logging_config: LoggingConfig | None = None
    tracing_config: TracingConfig | None = None
    target_capacity: float | None = Field(default=None, ge=0.0, le=100.0)
    applications: tuple[Application]


class ConfigError(ValueError):
    """What is wrong with a file: one "file:line: key: message" a problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def check_config(path: Path) -> ServeFile:
    """The file's content. Raises ConfigError with every problem and its line; OSError if it can't be read."""
    loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    try:
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError([f"{path}:1: not a mapping of settings"])
        repeated = [f"{path}:{line}: {key}: this key stands twice" for key, line in _repeated(root)]
        if repeated:
            raise ConfigError(repeated)
        content = loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise ConfigError([f"{path}:{line}: no valid YAML: {getattr(error, 'problem', error)}"]) from None
    finally:
        loader.dispose()
    try:
        file = ServeFile.model_validate(content)
    except ValidationError as error:
        raise ConfigError([_problem(path, root, details) for details in error.errors()]) from None
    access = file.applications[0].args.access
    if not (access.keyed or access.open_to_all or is_loopback(file.http_options.host)):
        line = _line(root, ("http_options", "host"))
        raise ConfigError([f"{path}:{line}: http_options.host: {file.http_options.host} {_NEEDS_KEYS}"])
    return file


def is_loopback(host: str) -> bool:
    """Only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: whatever it leads to today
        return False


def check_keys(settings: Settings) -> None:
    """Raise ConfigError if the settings name API keys, or secrets of webhooks, that can't be read here."""
    if settings.access.keyed:
        try:
            KeyRing(settings.access)
        except BadKeys as error:
            raise ConfigError([f"access: {error}"]) from None
    if settings.webhooks.on:
        try:
            SigningSecrets(settings.webhooks)
        except BadSecrets as error:
            raise ConfigError([f"webhooks: {error}"]) from None


def missing_files(path: Path, file: ServeFile) -> list[str]:
    """What the settings name on this machine's disk and isn't there, as ConfigError's problems; hubs aren't asked."""
    settings = file.applications[0].args
    root: yaml.Node = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)  # type: ignore[assignment]
    safety = settings.safety
    named: dict[tuple[str, ...], str | None] = {
        **{("models", name, "source"): model.source for name, model in settings.models.items()},
        ("safety", "classifier"): None if safety.mode == "off" else safety.classifier,
        ("safety", "safety_checker"): None if safety.mode == "off" else safety.safety_checker,
    }
    problems = []
    for keys, source in named.items():
        if source is None or is_hub_id(source):
            continue
        try:
            resolve_source(source)
        except CheckpointError as error:
            problems.append(_missing(path, root, keys, error))
    for section, of, folder in (
        ("controlnets", "ControlNets", settings.controlnets.folder),
        ("upscalers", "upscalers", settings.upscalers.folder),
    ):
        try:
            if folder is not None:
                find_folder(folder, of)
        except CheckpointError as error:
            problems.append(_missing(path, root, (section, "folder"), error))
    return problems + _missing_loras(path, root, settings)


def _missing_loras(path: Path, root: yaml.Node, settings: Settings) -> list[str]:
    """Of the folder of LoRAs, and of those that models wear."""
    try:
        folder = LoraFolder(settings.loras.folder)
    except CheckpointError as error:
        return [_missing(path, root, ("loras", "folder"), error)]
    problems = []
    for name, model in settings.models.items():
        for index, lora in enumerate(model.loras):
            try:
                folder.check(lora.name)
            except LoraRefused as error:
                reason = f"{error} ({settings.loras.folder}/{lora.name}.safetensors)"
                problems.append(_missing(path, root, ("models", name, "loras", index, "name"), reason))
    return problems


def _missing(path: Path, root: yaml.Node, keys: Sequence[str | int], reason: object) -> str:
    loc = ("applications", 0, "args", *keys)
    return f"{path}:{_line(root, loc)}: {'.'.join(map(str, loc))}: {reason}"


def unfit_claims(path: Path, file: ServeFile, gpus: float) -> list[str]:
    """Why a cluster of so many GPUs can't hold the stages' claims, as ConfigError's problems; none if it can."""
    problem = Claims.of_all(file.applications[0].args, gpus).unfit(gpus)
    if problem is None:
        return []
    root: yaml.Node = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)  # type: ignore[assignment]
    return [f"{path}:{_line(root, ('applications', 0, 'args', 'stages'))}: applications.0.args.stages: {problem}"]


def _problem(path: Path, root: yaml.Node, details: Any) -> str:
    """One line for people about one of pydantic's errors."""
    loc = details["loc"]
    message = details["msg"].removeprefix("Value error, ")
    if details["type"] == "extra_forbidden":
        message = "unknown key"
    elif details["type"] == "missing":
        message = "this key is missing"
    return f"{path}:{_line(root, loc)}: {'.'.join(map(str, loc))}: {message}"


def _line(root: yaml.Node, loc: Sequence[str | int]) -> int:
    """The line, from 1, of the deepest part of `loc` that stands in the file."""
    node, line = root, root.start_mark.line
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
    return line + 1


def _repeated(node: yaml.Node) -> Iterator[tuple[str, int]]:
    """Keys that stand twice in one mapping, with their lines; YAML would take the last one without a word."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.value, key.start_mark.line + 1
            seen.add(key.value)
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _repeated(value)


def check_port(options: HttpOptions) -> None:
    """Raise ConfigError if somebody listens on the port already.

    Serve binds it so that several proxies can share it: a second service on it would start without a word, and each
    would get a part of the requests.
    """
    family, _, _, _, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger are no listeners
        try:
            probe.bind(address)
        except OSError as error:
            message = f"{options.host}:{options.port} can't be listened on: {error.strerror}"
            raise ConfigError([message]) from None


def check_start(path: Path) -> ServeFile:
    """The file, if a service can start with it here and now: its keys can be read, its port is free.

    Raises ConfigError or OSError.
    """
    file = check_config(path)
    check_keys(file.applications[0].args)
    check_port(file.http_options)
    return file
