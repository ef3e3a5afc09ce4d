"""Read the text files that describe data, with the line of what is wrong in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from yolo_lat.errors import UserError

# PyYAML lets Python's own errors through where a value is not what its tag says, such as `!!bool maybe`.
_YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, OverflowError)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but a key that is given twice is an error: PyYAML would take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        written = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        made = super().construct_mapping(node, deep)
        seen = set()
        for key in written:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            seen.add(name or key)
        return made


def read_yaml(file: Path) -> Any:
    """Read a YAML file.

    Raises:
        UserError: unreadable, not YAML, or a key given twice; the message names the line.
    """
    try:
        return yaml.load(file.read_text(encoding="utf-8-sig"), _Loader)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); give a YAML file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text; save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{file}{line}: not valid YAML ({error.problem}); mend the file") from error
    except RecursionError as error:
        raise UserError(f"{file}: not valid YAML (nested too deeply); mend the file") from error
    except _YAML_ERRORS as error:
        raise UserError(
            f"{file}: not valid YAML (a character or value that it does not have); mend the file"
        ) from error


_UNUSED = ("segmentation", "keypoints", "caption")  # most of a COCO file, and nothing to a detector


def _without_unused(row: dict[str, Any]) -> dict[str, Any]:
    for key in _UNUSED:
        row.pop(key, None)
    return row


def read_json(file: Path) -> Any:
    """Read a JSON file, without the polygons and key points that COCO's have.

    Raises:
        UserError: unreadable or not JSON; the message names the line.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"), object_hook=_without_unused)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {error.lineno}: not valid JSON ({error.msg}); mend the file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text; give a JSON") from error
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON (a number of thousands of digits); mend the file") from error
    except RecursionError as error:
        raise UserError(f"{file}: not valid JSON (nested too deeply); mend the file") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); give a JSON file") from error
