"""Checks a whole serve_config.yaml and names the line of each problem (`darkroom config check`).

Serve ignores unknown keys at the top of the file and in http_options, so that a misspelt `host` would start a service
on all interfaces. Here unknown keys are errors, and an address that other machines can reach needs API keys or
open_to_all. Imports neither Ray nor torch, which would take seconds.
"""

import ipaddress
import socket
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import Field, ValidationError

from deployments.engine.adapters.lora_folder import LoraFolder
from deployments.engine.checkpoints.files import is_hub_id, resolve_source
from deployments.engine.conditioning.controlnet_files import ControlnetFolder
from deployments.engine.conditioning.ip_adapter_files import IpAdapterFolder
from deployments.engine.config import Section
from deployments.engine.detection.folder import DetectorFolder
from deployments.engine.errors import CheckpointError, LoraRefused
from deployments.engine.prompts.textual_inversion import EmbeddingFolder
from deployments.engine.upscaling.folder import UpscalerFolder
from deployments.engine.vae.folder import VaeFolder
from serve_app.auth.key_file import BadKeys, KeyRing
from serve_app.config.claims import Claims
from serve_app.config.settings import Settings
from serve_app.config.weights_check import (
    doubtful_files,
    incomplete_folders,
    missing_sources,
    unjudged_models,
    wrong_files,
)
from serve_app.config.yaml_lines import Keys, keys_in, line_of, repeated_keys
from serve_app.webhooks.signing import BadSecrets, SigningSecrets


class HttpOptions(Section):
    """Serve's HTTP proxy."""

    host: str = Field(min_length=1, examples=["127.0.0.1"])
    """Address to listen on. Required, because Serve's own default is every interface."""
    port: int = Field(default=8000, ge=1, le=65_535)
    """Port to listen on."""
    root_path: str = ""
    """Path that a proxy in front of the service removes from URLs."""
    request_timeout_s: float | None = Field(default=None, gt=0.0, examples=[3_600.0])  # Serve takes 0 for "at once"
    """Seconds after which Serve cancels a request; null is never."""
    keep_alive_timeout_s: int = Field(default=90, ge=1)
    """Seconds that an idle connection stays open."""
    ssl_keyfile: str | None = Field(default=None, examples=["/etc/ssl/darkroom.key"])
    """Private key (PEM) for HTTPS."""
    ssl_certfile: str | None = Field(default=None, examples=["/etc/ssl/darkroom.pem"])
    """Certificate (PEM) for HTTPS."""
    ssl_keyfile_password: str | None = Field(default=None, examples=["secret"])
    """Password of ssl_keyfile."""
    ssl_ca_certs: str | None = Field(default=None, examples=["/etc/ssl/clients.pem"])
    """Certificates (PEM) of the authorities that may sign clients' certificates."""


class LoggingConfig(Section):
    """Serve's log files and terminal output."""

    encoding: Literal["TEXT", "JSON"] = "TEXT"
    """Form of a line."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe level that is logged."""
    logs_dir: str | None = Field(default=None, examples=["/var/log/darkroom"])
    """Folder of the log files; without it, Ray's."""
    enable_access_log: bool = True
    """Log each HTTP request."""
    additional_log_standard_attrs: tuple[str, ...] = Field(default=(), examples=[["name"]])
    """Further attributes of Python's LogRecord in each line."""


class TracingConfig(Section):
    """OpenTelemetry spans."""

    enabled: bool = False
    """Record spans."""
    exporter_import_path: str = Field(default="", examples=["my_package.tracing:exporter"])
    """Function that returns the span processors, as `module:function`."""
    sampling_ratio: float = Field(default=1.0, ge=0.0, le=1.0)
    """Part of the requests that is recorded, 0 to 1."""


class Application(Section):
    """The application. Serve's own `deployments:` is refused here: args.stages replaces it."""

    name: str = Field(min_length=1, examples=["darkroom"])
    """Name of the application in Serve."""
    route_prefix: str = Field(default="/", pattern="^/")
    """Path that the application's URLs begin with."""
    import_path: Literal["serve_app.app:build"]
    """What Serve imports."""
    runtime_env: dict[str, Any] = Field(default={}, examples=[{"env_vars": {"HF_HOME": "/srv/huggingface"}}])
    """Ray's runtime environment of every replica."""
    args: Settings
    """The application's own settings."""
    logging_config: LoggingConfig | None = Field(default=None, examples=[{"log_level": "DEBUG"}])
    """Logging of this application's replicas, in place of the file's."""


_NEEDS_KEYS = (
    "can be reached from other machines: name a file of API keys in args.access.keys_file "
    "(`darkroom keys make` makes keys), or set args.access.open_to_all: true"
)


_NEEDS_SAFETY = (
    "the default classifier knows the demo models' images alone. Name one, `safety: {classifier: "
    'Falconsai/nsfw_image_detection}`, or none, `safety: {mode: "off"}`, for'
)


_UNMARKED = (
    "c2pa isn't set, and others can reach the service: its images don't say, so that machines can tell, that they were "
    "generated. docs/provenance.md says who has to"
)


class ServeFile(Section):
    """A whole configuration file, as `serve run` and `serve deploy` take it."""

    proxy_location: Literal["Disabled", "HeadOnly", "EveryNode"] = "EveryNode"
    """Nodes that run an HTTP proxy."""
    http_options: HttpOptions
    """Serve's HTTP proxy."""
    logging_config: LoggingConfig | None = Field(default=None, examples=[{"encoding": "JSON"}])
    """Logging of Serve and of every replica."""
    tracing_config: TracingConfig | None = Field(default=None, examples=[{"enabled": True}])
    """OpenTelemetry spans."""
    target_capacity: float | None = Field(default=None, ge=0.0, le=100.0, examples=[100.0])
    """Per cent of the replicas that Serve starts, for a gradual switch between clusters."""
    applications: tuple[Application]
    """The application; exactly one."""


class ConfigError(ValueError):
    """The problems of a file, each as "file:line: key: message"."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def check_config(path: Path) -> ServeFile:
    """Read and check a configuration file.

    Raises:
        ConfigError: with every problem and its line.
        OSError: the file can't be read.
    """
    root, content = _read(path)
    try:
        file = ServeFile.model_validate(content)
    except ValidationError as error:
        raise ConfigError(_problems(path, root, error)) from None
    access = file.applications[0].args.access
    if not (access.keyed or access.open_to_all or is_loopback(file.http_options.host)):
        line = line_of(root, ("http_options", "host"))
        raise ConfigError([f"{path}:{line}: http_options.host: {file.http_options.host} {_NEEDS_KEYS}"])
    if unjudged := unjudged_models(file.applications[0].args):
        loc = ("applications", 0, "args", "safety")
        raise ConfigError([f"{path}:{line_of(root, loc)}: {'.'.join(map(str, loc))}: {_NEEDS_SAFETY}: {unjudged[0]}"])
    return file


def _read(path: Path) -> tuple[yaml.MappingNode, Any]:
    """A file's nodes, for the lines of its keys, and its content. Raises ConfigError, OSError."""
    loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    try:
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError([f"{path}:1: expected settings as `key: value` lines"])
        repeated = [f"{path}:{line}: {key}: the key is given twice" for key, line in repeated_keys(root)]
        if repeated:
            raise ConfigError(repeated)
        return root, loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise ConfigError([f"{path}:{line}: invalid YAML: {getattr(error, 'problem', error)}"]) from None
    finally:
        loader.dispose()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a host name, which may resolve to any address
        return False


def check_keys(settings: Settings) -> None:
    """Raise ConfigError if keys, secrets, a certificate or a plug-in that the settings name can't be read here."""
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
    if settings.provenance.c2pa is not None and settings.provenance.c2pa.development_folder is None:
        from serve_app.provenance.certificates import BadCredentials, read_identity  # 0.3 s, of use only here

        try:
            read_identity(settings.provenance.c2pa)
        except BadCredentials as error:
            raise ConfigError([f"provenance: {error}"]) from None
    if settings.provenance.watermark is not None:
        from serve_app.provenance.watermark import BadWatermark, watermark_of  # OpenCV, of use only here

        try:
            watermark_of(settings.provenance.watermark.method)
        except BadWatermark as error:
            raise ConfigError([f"provenance: {error}"]) from None


def missing_files(path: Path, file: ServeFile) -> list[str]:
    """Problems for files and folders that the settings name and this machine lacks; hub ids aren't looked up."""
    settings = file.applications[0].args
    safety = settings.safety
    judged_by = ("classifier", "safety_checker") if safety.mode != "off" else ()
    problems = [_args_problem(path, keys, reason) for keys, reason in missing_sources(settings)]
    for key in judged_by:
        source: str | None = getattr(safety, key)
        if source is None or is_hub_id(source):
            continue
        try:
            resolve_source(source)
        except CheckpointError as error:
            problems.append(_args_problem(path, ("safety", key), error))
    for index, allowed in enumerate(settings.registry.folders):
        if not Path(allowed).expanduser().is_dir():
            problems.append(_args_problem(path, ("registry", "folders", index), f"{allowed}: there is no such folder"))
    wildcards = settings.prompts.wildcards
    if wildcards is not None and not Path(wildcards).expanduser().is_dir():
        problems.append(_args_problem(path, ("prompts", "wildcards"), f"{wildcards}: there is no such folder"))
    for section, folder_class, folder in (
        ("controlnets", ControlnetFolder, settings.controlnets.folder),
        ("ip_adapters", IpAdapterFolder, settings.ip_adapters.folder),
        ("vaes", VaeFolder, settings.vaes.folder),
        ("upscalers", UpscalerFolder, settings.upscalers.folder),
        ("detectors", DetectorFolder, settings.detectors.folder),
        ("embeddings", EmbeddingFolder, settings.stages.text_encoder.embeddings),
    ):
        try:
            folder_class(folder)
        except CheckpointError as error:
            keys = ("stages", "text_encoder", section) if section == "embeddings" else (section, "folder")
            problems.append(_args_problem(path, keys, error))
    for findings in (wrong_files(settings), incomplete_folders(settings)):
        problems += [_args_problem(path, keys, reason) for keys, reason in findings]
    try:
        loras = LoraFolder(settings.loras.folder)
    except CheckpointError as error:
        return [*problems, _args_problem(path, ("loras", "folder"), error)]
    for name, model in settings.models.items():
        for index, lora in enumerate(model.loras):
            try:
                loras.find(lora.name)
            except LoraRefused as error:
                reason = f"{error} ({settings.loras.folder}/{lora.name}.safetensors)"
                problems.append(_args_problem(path, ("models", name, "loras", index, "name"), reason))
    return problems


def doubtful(path: Path, file: ServeFile) -> list[str]:
    """Warnings: files that the service will skip, or that contradict the settings; images for others without marks."""
    settings = file.applications[0].args
    problems = [_args_problem(path, keys, reason) for keys, reason in doubtful_files(settings)]
    if not is_loopback(file.http_options.host):
        if settings.provenance.c2pa is None:
            problems.append(_args_problem(path, ("provenance",), _UNMARKED))
        elif settings.provenance.c2pa.development_folder is not None:
            keys = ("provenance", "c2pa", "development_folder")
            problems.append(_args_problem(path, keys, "a development certificate proves nothing to anybody"))
    return problems


def ending(path: Path, file: ServeFile) -> list[str]:
    """A warning for a certificate that signs images and expires soon; files that `check_keys` has read are read."""
    c2pa = file.applications[0].args.provenance.c2pa
    if c2pa is None or c2pa.development_folder is not None:
        return []
    from serve_app.provenance.certificates import EXPIRES_SOON_S, read_identity  # 0.3 s, of use only here

    identity = read_identity(c2pa)
    if identity.seconds_left() >= EXPIRES_SOON_S:
        return []
    reason = f"the certificate {identity.name!r} that signs images expires on {identity.expires:%Y-%m-%d}"
    return [_args_problem(path, ("provenance", "c2pa"), reason)]


def unfit_claims(path: Path, file: ServeFile, gpus: float) -> list[str]:
    """The problem if the stages claim more than `gpus` GPUs; an empty list otherwise."""
    problem = Claims(file.applications[0].args, gpus).unfit(gpus)
    return [] if problem is None else [_args_problem(path, ("stages",), problem)]


def _args_problem(path: Path, keys: Keys, reason: object) -> str:
    """A problem of one of the application's settings as a line."""
    root, _ = _read(path)
    loc = ("applications", 0, "args", *keys)
    return f"{path}:{line_of(root, loc)}: {'.'.join(map(str, loc))}: {reason}"


def _problems(path: Path, root: yaml.Node, error: ValidationError) -> list[str]:
    """Pydantic's errors as lines. What several models share by an anchor is one mistake, and shown once."""
    shown: dict[tuple[int, str], str] = {}
    for details in error.errors():
        keys: tuple[str | int, ...] = details["loc"]
        message = details["msg"].removeprefix("Value error, ")
        if details["type"] == "extra_forbidden":
            message = f"unknown key{_meant(keys)}"
        elif details["type"] == "missing":
            message = "this required key is missing"
        # a validator's message begins with the key that it is about
        about = message.split(" ", 1)[0]
        named = keys_in(root, keys, about.removesuffix(":"))
        if named and about.endswith(":") and ".".join(named) == about[:-1]:
            message = message[len(about) + 1 :]
            line, keys = line_of(root, (*keys, *named)), (*keys, *named)
        else:
            line = line_of(root, (*keys, *named))
        shown.setdefault((line, message), f"{path}:{line}: {'.'.join(map(str, keys))}: {message}")
    return list(shown.values())


def _meant(keys: Keys) -> str:
    """The key that an unknown one is likest to, as the end of a message; nothing if none is like it."""
    kinds: list[Any] = [ServeFile]
    for key in keys[:-1]:
        kinds = [value for kind in kinds for value in _values(kind, key)]
    known = [name for kind in kinds if _is_section(kind) for name in kind.model_fields]
    like = get_close_matches(str(keys[-1]), known, n=1, cutoff=0.5)
    return f": did you mean {like[0]}?" if like else ""


def _values(kind: Any, key: str | int) -> list[Any]:
    """The types that a section's field, a mapping's value or a list's item may be of."""
    if _is_section(kind):
        return _alternatives(kind.model_fields[key].annotation) if key in kind.model_fields else []
    arguments = get_args(kind)
    return _alternatives(arguments[1 if get_origin(kind) is dict else 0]) if arguments else []


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _alternatives(part)]
    return [annotation]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def check_port(options: HttpOptions) -> None:
    """Raise ConfigError if another process listens on the port.

    Serve opens it for sharing between proxies: a second service would start, and each would get a part of the requests.
    """
    family, _, _, _, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignores connections in TIME_WAIT
        try:
            probe.bind(address)
        except OSError as error:
            raise ConfigError([f"can't listen on {options.host}:{options.port}: {error.strerror}"]) from None


def check_start(path: Path) -> ServeFile:
    """check_config, and further that a service can start here and now: its keys are readable, its port is free."""
    file = check_config(path)
    check_keys(file.applications[0].args)
    check_port(file.http_options)
    return file
