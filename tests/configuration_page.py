"""docs/configuration.md, made of the settings' models.

python -m tests.configuration_page > docs/configuration.md
"""

import re
import sys
from collections.abc import Iterator
from typing import Any

import yaml

from serve_app.config.check import ServeFile

Schema = dict[str, Any]

_HEAD = """\
# Configuration

Every setting with its default, its allowed values and an example to copy. This page is made of the settings' models:
`python -m tests.configuration_page > docs/configuration.md` writes it. Don't edit it by hand.

A configuration is one YAML file in the form of Ray Serve. Darkroom's settings stand under `args`:

```yaml
http_options: {host: 127.0.0.1, port: 8000}
applications:
  - name: darkroom
    route_prefix: /
    import_path: serve_app.app:build
    args:
      default_model: mine
      models:
        mine: {family: sd15, source: /models/mine.safetensors}
```

- `darkroom config check my_config.yaml` names the line of every problem. It starts nothing.
- An unknown key stops the start. So does a value of the wrong type or outside its range.
- A key that you leave out has the default given here.
- An example shows every key of its section, at its place in the file. Copy the lines that you change.
- Settings take effect at the next start. Files of keys, secrets and weights are read again when they change.
"""
_ARGS = "applications[].args"
_LEAST_SHARED = 4  # keys that two models have in common by inheritance, not by chance
_KINDS = {
    "string": "text",
    "integer": "whole number",
    "boolean": "`true` or `false`",
    "null": "`null`",
    "object": "section",
}
_BOUNDS = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "to",
    "exclusiveMaximum": "below",
    "multipleOf": "in steps of",
}


def configuration_page() -> str:
    """The whole page, in Markdown."""
    document = ServeFile.model_json_schema()
    schemas: dict[str, Schema] = {"ServeFile": document, **document["$defs"]}
    places: dict[str, list[str]] = {}
    for path, name in [("", "ServeFile"), *_sections("ServeFile", schemas, "")]:
        places.setdefault(name, []).append(path)
    # Darkroom's own settings come before those of Ray Serve
    ordered = sorted(places, key=lambda name: not places[name][0].startswith(_ARGS))
    headings = {name: _heading(places[name]) for name in ordered}
    lines = [_HEAD, "## Contents", "", *(f"- [{one}](#{_anchor(one)})" for one in headings.values())]
    for name in ordered:
        schema = schemas[name]
        properties = dict(schema["properties"])
        lines += ["", f"## {headings[name]}", "", _first_paragraph(schema["description"]), ""]
        if "STAGE" in headings[name]:
            stages = [f"`{path.removeprefix(_ARGS).split('.')[2]}`" for path in places[name]]
            lines += [f"`STAGE` is {', '.join(stages)}.", ""]
        base = _base(name, schemas)
        if base is not None:
            properties = {key: one for key, one in properties.items() if key not in schemas[base]["properties"]}
            lines += [f"It has every key of [{headings[base]}](#{_anchor(headings[base])}), and these:", ""]
        required = schema.get("required", ())
        lines += [_line(key, one, headings, schemas, required=key in required) for key, one in properties.items()]
        lines += _other_defaults(places[name], schema, schemas)
        lines += _example(places[name][0], properties)
    return "\n".join(lines) + "\n"


def _sections(name: str, schemas: dict[str, Schema], path: str) -> Iterator[tuple[str, str]]:
    """Every place below `path` that holds a section, with the name of the section's model."""
    for key, one in schemas[name]["properties"].items():
        for child, suffix in _references(one):
            place = f"{path}.{key}{suffix}".removeprefix(".")
            yield place, child
            yield from _sections(child, schemas, place)


def _references(schema: Schema) -> Iterator[tuple[str, str]]:
    """The models that a value may be of, and how a path goes on to it."""
    if "$ref" in schema:
        yield schema["$ref"].rpartition("/")[2], ""
    parts = [(one, "") for one in schema.get("anyOf", ())]
    parts += [(one, "[]") for one in (*schema.get("prefixItems", ()), schema.get("items")) if isinstance(one, dict)]
    parts += [(one, ".NAME") for one in schema.get("patternProperties", {}).values()]
    for part, suffix in parts:
        for name, more in _references(part):
            yield name, suffix + more


def _base(name: str, schemas: dict[str, Schema]) -> str | None:
    """Another model whose keys this one has besides its own: the largest."""
    keys = schemas[name]["properties"].items()
    within = [one for one in schemas if one != name and _LEAST_SHARED <= len(schemas[one]["properties"]) < len(keys)]
    shared = [one for one in within if schemas[one]["properties"].items() <= keys]
    return max(shared, key=lambda one: len(schemas[one]["properties"]), default=None)


def _heading(paths: list[str]) -> str:
    names = [path.removeprefix(_ARGS).removeprefix(".") or "args" if path else "The file" for path in paths]
    if len(names) > 1 and names[0].startswith("stages."):
        names = [re.sub(r"stages\.\w+", "stages.STAGE", names[0])]
    return ", ".join(f"`{name}`" if name != "The file" else name for name in names)


def _anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-")


def _line(key: str, schema: Schema, headings: dict[str, str], schemas: dict[str, Schema], *, required: bool) -> str:
    facts = _type(schema)
    meaning = schema.get("description", "")
    for child, _ in _references(schema):
        facts = facts.replace("section", f"[section](#{_anchor(headings[child])})")
        meaning = meaning or _first_paragraph(schemas[child]["description"])
    if required:
        facts += ", required"
    elif "default" in schema and not isinstance(schema["default"], dict):
        facts += f", default `{_yaml(schema['default'])}`"
    return f"- `{key}` ({facts}): {' '.join(meaning.split())}"


def _type(schema: Schema) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{one}`" for one in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "object")
    if kind == "array":
        (items,) = schema.get("prefixItems", [schema.get("items")])
        return f"list of {_type(items)}"
    bounds = [f"{word} {schema[key]:,.12g}" for key, word in _BOUNDS.items() if key in schema]
    return " ".join([_KINDS.get(kind, kind), *bounds])


def _other_defaults(paths: list[str], schema: Schema, schemas: dict[str, Schema]) -> list[str]:
    """What a place has in place of the model's own defaults."""
    own = {key: one["default"] for key, one in schema["properties"].items() if "default" in one}
    lines = {}
    for key in {path.rpartition(".")[2] for path in paths}:
        for holder in schemas.values():
            default = holder["properties"].get(key, {}).get("default")
            if not isinstance(default, dict):
                continue
            other = {name: value for name, value in default.items() if own.get(name, value) != value}
            if other:
                lines[f"Other defaults of `{key}`: `{_yaml(other)}`."] = None
    return ["", *lines] if lines else []


def _first_paragraph(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def _example(path: str, properties: dict[str, Schema]) -> list[str]:
    """Every key with its example, or with its default."""
    content: Any = {key: _value(one) for key, one in properties.items() if not any(_references(one))}
    if not content:
        return []
    for part in reversed(path.replace("NAME", "mine").split(".") if path else []):
        content = {part.removesuffix("[]"): [content] if part.endswith("[]") else content}
    return ["", "```yaml", yaml.safe_dump(_round(content), sort_keys=False, width=200).strip(), "```"]


def _value(schema: Schema) -> Any:
    """One that may be copied: its example, its default, or the first of those that are allowed."""
    if "examples" in schema:
        return schema["examples"][0]
    return schema.get("default", schema.get("const", schema.get("enum", [{}])[0]))


def _yaml(value: Any) -> str:
    """On one line."""
    text = yaml.safe_dump(_round(value), sort_keys=False, default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def _round(value: Any) -> Any:
    """Whole numbers without their fraction."""
    if isinstance(value, dict):
        return {key: _round(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_round(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


if __name__ == "__main__":
    sys.stdout.write(configuration_page())
