"""A mistake in a configuration file is named with its line."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import HTTPOptionsSchema, LoggingConfig, ServeApplicationSchema, ServeDeploySchema, TracingConfig

from serve_app.config import check as config_check
from serve_app.config.check import ConfigError, check_config, check_keys, check_start, doubtful

SHOULD_BE_INTEGER = "Input should be a valid integer, unable to parse string as an integer"
SD15 = "applications.0.args.stages.sd15"
DEFAULT = (Path(__file__).parents[3] / "serve_config.yaml").read_text()


def problems(tmp_path: Path, old: str, new: str) -> tuple[list[str], int]:
    """The problems of the default configuration with `old` replaced, and the line where `new` stands."""
    assert DEFAULT.count(old) == 1, old
    text = DEFAULT.replace(old, new)
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        check_config(path)
    return list(caught.value.problems), text[: text.index(new)].count("\n") + 1


@pytest.mark.parametrize(
    ("old", "new", "key", "message"),
    [
        ("proxy_location: HeadOnly", "proxy_locatoin: HeadOnly", "proxy_locatoin", "did you mean proxy_location?"),
        ("port: 8000", "prot: 8000", "http_options.prot", "unknown key: did you mean port?"),
        ("default_model: demo-sd15", "default_model: nothing", "applications.0.args.default_model", "unknown model 'n"),
        ("refiner: demo-sdxl-refiner", "refiner: ever", "applications.0.args.models.demo-sdxl.refiner", "unknown mod"),
        ("switch_at: 0.8", "swich_at: 0.8", "applications.0.args.models.demo-sdxl.swich_at", "did you mean switch_at?"),
        ("threshold: 0.8", "threshold: 1.8", "applications.0.args.safety.threshold", "less than or equal to 1"),
        (
            "resident_checkpoints: 2",
            "resident: 2",
            "applications.0.args.stages.sd15.engine.resident",
            "did you mean resident_checkpoints?",
        ),
        ("max_rows: 16", "max_rows: 12", f"{SD15}.engine", "power of two"),
        ("max_queued: 100", "max_queued: many", "applications.0.args.jobs.max_queued", "valid integer"),
        ("import_path: serve_app.app:build", "import_path: other:app", "applications.0.import_path", "serve_app.app"),
        ("request_timeout_s: null", "request_timeout_s: 0", "http_options.request_timeout_s", "greater than 0"),
    ],
)
def test_names_line_key_and_reason(tmp_path: Path, old: str, new: str, key: str, message: str) -> None:
    found, line = problems(tmp_path, old, new)
    assert len(found) == 1
    where, shown, reason = found[0].split(": ", 2)
    assert shown == key
    assert message in reason
    assert where.endswith(f":{line}")


def test_a_key_that_is_like_no_other_is_unknown_without_a_guess(tmp_path: Path) -> None:
    found, _ = problems(tmp_path, "port: 8000", "zzz: 8000")
    assert [problem.rpartition(": ")[2] for problem in found] == ["unknown key"]


def test_a_mistake_that_an_anchor_repeats_is_one(tmp_path: Path) -> None:
    for old, new in (
        ("            guidance_scale: 5.0", "            guidance_scal: 5.0"),  # an unknown key, of four models
        ("            sampler: dpmpp_2m", "            sampler: magic"),  # a value that a validator refuses
        ("            steps: 20", "            steps: 90"),  # two keys that don't fit each other
    ):
        found, line = problems(tmp_path, old, new)
        assert len(found) == 1, found
        assert f":{line}: applications.0.args.models.demo-sd15" in found[0]


def test_a_key_that_is_merged_in_has_the_line_where_it_is_written(tmp_path: Path) -> None:
    old = "          defaults: *demo_defaults\n          limits: *demo_limits\n        demo-sd15-stripes:"
    new = (
        "          defaults: {<<: *demo_defaults, steps: x}\n          limits: *demo_limits\n        demo-sd15-stripes:"
    )
    found, line = problems(tmp_path, old, new)
    assert found[0].endswith(
        f":{line}: applications.0.args.models.demo-sd15-outline.defaults.steps: {SHOULD_BE_INTEGER}"
    )
    found, _ = problems(tmp_path, old, new.replace("steps: x", "steps: 20").replace("demo_defaults,", "demo_limits,"))
    line = DEFAULT[: DEFAULT.index("            max_clip_skip: 1")].count("\n") + 1
    assert any(f":{line}: " in problem and "max_clip_skip: unknown key" in problem for problem in found), found


def test_a_model_s_name_may_contain_points(tmp_path: Path) -> None:
    old = "        demo-sdxl:\n          family: sdxl\n"
    found, line = problems(tmp_path, old, "        demo.xl.1:\n          family: sdxl\n          tenants: [alice]\n")
    assert len(found) == 1
    assert f":{line + 2}: applications.0.args.models.demo.xl.1.tenants: needs API keys" in found[0]


def test_names_a_key_that_stands_twice(tmp_path: Path) -> None:
    found, line = problems(tmp_path, "  port: 8000", "  port: 8000\n  port: 8001")
    assert found[0].endswith(f":{line + 1}: port: the key is given twice")


def test_names_the_line_of_broken_yaml(tmp_path: Path) -> None:
    found, line = problems(tmp_path, "  port: 8000", "  port: [8000")
    assert "invalid YAML" in found[0]
    assert int(found[0].split(":")[1]) >= line


def test_asks_for_a_host(tmp_path: Path) -> None:
    found, _ = problems(tmp_path, "  host: 127.0.0.1\n", "")
    assert "http_options.host: this required key is missing" in found[0]


def test_refuses_serves_own_deployments_list(tmp_path: Path) -> None:
    found, _ = problems(tmp_path, "    route_prefix: /", "    route_prefix: /\n    deployments: []")
    assert "applications.0.deployments: unknown key" in found[0]


def test_a_file_that_is_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("- a\n")
    with pytest.raises(ConfigError, match="expected settings"):
        check_config(path)


def test_every_known_key_is_one_of_serves() -> None:
    for ours, serves in (
        (config_check.ServeFile, ServeDeploySchema),
        (config_check.Application, ServeApplicationSchema),
        (config_check.HttpOptions, HTTPOptionsSchema),
        (config_check.LoggingConfig, LoggingConfig),
        (config_check.TracingConfig, TracingConfig),
    ):
        assert set(ours.model_fields) <= set(serves.model_fields)


def test_imports_neither_ray_nor_torch() -> None:
    code = "import sys, serve_app.config.check; sys.exit(bool({'ray', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0


def test_a_port_that_somebody_listens_on_stops_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as listener:
        port = listener.getsockname()[1]
        path = tmp_path / "serve_config.yaml"
        path.write_text(DEFAULT.replace("port: 8000", f"port: {port}"))
        check_config(path)
        with pytest.raises(ConfigError, match=f"^can't listen on 127.0.0.1:{port}: Address already in use$"):
            check_start(path)
    assert check_start(path).http_options.port == port


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "darkroom.example"])  # noqa: S104  # refused
def test_an_address_that_others_reach_needs_keys(tmp_path: Path, host: str) -> None:
    found, line = problems(tmp_path, "host: 127.0.0.1", f"host: '{host}'")
    assert len(found) == 1
    assert f":{line}: http_options.host: {host} can be reached" in found[0]
    for old, new in (
        ("keys_file: null", "keys_file: keys"),
        ("keys_file: null", "keys_env: DARKROOM_KEYS"),
        ("keys_file: null", "open_to_all: true"),
    ):
        path = tmp_path / "allowed.yaml"
        path.write_text(DEFAULT.replace("host: 127.0.0.1", f"host: '{host}'").replace(old, new))
        assert check_config(path).http_options.host == host


@pytest.mark.parametrize(
    ("safety", "allowed"),
    [
        (None, False),
        ({"mode": "blur"}, False),
        ({"classifier": "Falconsai/nsfw_image_detection"}, True),
        ({"classifier": "package:demo_models/demo-nsfw"}, True),
        ({"safety_checker": "CompVis/stable-diffusion-safety-checker"}, True),
        ({"mode": "off"}, True),
    ],
)
def test_who_judges_real_checkpoints_has_to_be_said(
    tmp_path: Path, safety: dict[str, str] | None, allowed: bool
) -> None:
    content = yaml.safe_load(DEFAULT)
    [application] = content["applications"]
    del application["args"]["safety"]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    check_config(path)  # the demo models, which the default classifier knows
    application["args"]["models"]["mine"] = {"family": "sd15", "source": "someone/something"}
    if safety is not None:
        application["args"]["safety"] = safety
    path.write_text(yaml.safe_dump(content))
    if allowed:
        check_config(path)
        return
    with pytest.raises(ConfigError, match=r"args\.safety: the default classifier .*safety: {classifier: .*: mine$"):
        check_config(path)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("package:demo_models/demo-sd15", "isn't a .safetensors file"),
        ("owner/name", "isn't a .safetensors file"),
        ("/nowhere/mine.safetensors", "there is no file /nowhere/mine.safetensors here"),
    ],
)
def test_a_family_that_nothing_says_is_asked_for_with_all_that_there_are(
    tmp_path: Path, source: str, reason: str
) -> None:
    content = yaml.safe_load(DEFAULT)
    content["applications"][0]["args"]["models"]["mine"] = {"source": source}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        check_config(path)
    [problem] = caught.value.problems
    assert "models.mine: say `family` (sd15 or sd2 or sdxl or sdxl-refiner): " in problem
    assert reason in problem


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_none(tmp_path: Path, host: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(DEFAULT.replace("host: 127.0.0.1", f"host: '{host}'"))
    assert check_config(path).http_options.host == host


def test_a_start_needs_keys_that_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(DEFAULT.replace("keys_file: null", f"keys_file: {tmp_path}/keys"))
    check_config(path)
    with pytest.raises(ConfigError, match=f"^access: {tmp_path}/keys"):
        check_start(path)


def test_a_service_for_others_that_marks_nothing_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "serve_config.yaml"
    public = DEFAULT.replace("host: 127.0.0.1", "host: 0.0.0.0").replace("keys_file: null", "open_to_all: true")
    section = "c2pa: {development_folder: darkroom-data/provenance}"
    for text, line, warning in (
        (public, section, "development_folder: a development certificate proves nothing to anybody"),
        (public.replace(section, "c2pa: null"), "provenance:", "args.provenance: c2pa isn't set, and others can reach"),
    ):
        path.write_text(text)
        [said] = doubtful(path, check_config(path))
        number = next(at for at, written in enumerate(text.splitlines(), 1) if line in written)
        assert said.startswith(f"{path}:{number}: ")
        assert warning in said
    path.write_text(DEFAULT.replace(section, "c2pa: null"))
    assert doubtful(path, check_config(path)) == [], "on this machine alone"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{}", "needs one of development_folder, certificates_file, certificates_env, not none"),
        ("{certificates_file: a, certificates_env: B, key_file: c}", "not certificates_file and certificates_env"),
        ("{development_folder: a, key_file: b}", "development_folder has a key of its own: leave key_file out"),
        ("{certificates_file: a}", "certificates_file needs one of key_file, key_env, key_command, key_url, not none"),
        ("{certificates_file: a, key_file: b, key_url: 'http://c'}", "not key_file and key_url"),
    ],
)
def test_one_certificate_and_one_key(tmp_path: Path, section: str, message: str) -> None:
    found, line = problems(tmp_path, "c2pa: {development_folder: darkroom-data/provenance}", f"c2pa: {section}")
    assert len(found) == 1
    assert f":{line}: applications.0.args.provenance.c2pa: " in found[0]
    assert message in found[0]


def test_a_certificate_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "serve_config.yaml"
    own = f"c2pa: {{certificates_file: {tmp_path}/none.pem, key_file: {tmp_path}/key.pem}}"
    path.write_text(DEFAULT.replace("c2pa: {development_folder: darkroom-data/provenance}", own))
    settings = check_config(path).applications[0].args
    with pytest.raises(ConfigError, match=r"provenance: .*none\.pem can't be read: No such file"):
        check_keys(settings)
