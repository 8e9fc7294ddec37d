"""Where keys stand in a YAML file, so that a problem can be shown with its line."""

from collections.abc import Iterator, Sequence

import yaml

Keys = Sequence[str | int]


def line_of(root: yaml.Node, keys: Keys) -> int:
    """The line, from 1, of the deepest of the keys that the file has."""
    node, line = root, root.start_mark.line
    for key in keys:
        entry = _entry(node, key)
        if entry is None:
            break
        line, node = entry
    return line + 1


def keys_in(root: yaml.Node, keys: Keys, path: str) -> tuple[str, ...]:
    """The keys below `keys` that a path such as "models.sd1.5.source" names, as far as the file has them."""
    node = root
    for key in keys:
        entry = _entry(node, key)
        if entry is None:
            return ()
        node = entry[1]
    named = []
    words = path.split(".")
    while words:
        # a key may contain points itself: the longest one that is there
        key, entry = next(
            ((key, entry) for n in range(len(words), 0, -1) if (entry := _entry(node, key := ".".join(words[:n])))),
            ("", None),
        )
        if entry is None:
            break
        named.append(key)
        words = words[key.count(".") + 1 :]
        node = entry[1]
    return tuple(named)


def repeated_keys(node: yaml.Node) -> Iterator[tuple[str, int]]:
    """Keys given twice in one mapping, with their lines; YAML would silently take the last one."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.value, key.start_mark.line + 1
            seen.add(key.value)
            yield from repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from repeated_keys(value)


def _entry(node: yaml.Node, key: str | int) -> tuple[int, yaml.Node] | None:
    """The line, from 0, and the value of a mapping's key or a list's item; None where there is none."""
    if isinstance(node, yaml.MappingNode):
        # the last one: what `<<` merges in stands before a mapping's own keys once it is read
        return next(((name.start_mark.line, value) for name, value in reversed(node.value) if name.value == key), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        item = node.value[key]
        return item.start_mark.line, item
    return None
