"""Write `tests/golden/vision_modules.json`: what the tiny models' parameters are called in several transformers.

    python tests/models/list_names.py OUT                       # the names in the installed transformers
    python tests/models/list_names.py OUT LISTED [LISTED ...]   # join what the first form wrote, oldest first

The first form needs nothing of this package, so it runs with any transformers on the path.
"""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def listed() -> dict[str, object]:
    """The version, and for each tiny model its parameters' names."""
    import transformers

    spec = spec_from_file_location("tiny_vision", Path(__file__).parent.parent / "tiny_vision.py")
    tiny = module_from_spec(spec)
    spec.loader.exec_module(tiny)
    names = {
        name: [parameter for parameter, _ in tiny.tiny_vision(name).named_parameters(remove_duplicate=False)]
        for name in tiny.CONFIGS
        if tiny.available(name) and name not in tiny.TOWERS
    }
    return {"version": transformers.__version__, "names": names}


def joined(files: list[str]) -> dict[str, list[dict[str, object]]]:
    """Model -> the spans of versions that agree, each with its names."""
    spans: dict[str, list[dict[str, object]]] = {}
    for file in files:
        one = json.loads(Path(file).read_text())
        for name, names in one["names"].items():
            known = spans.setdefault(name, [])
            if known and set(known[-1]["names"]) == set(names):
                known[-1]["versions"].append(one["version"])
            else:
                known.append({"versions": [one["version"]], "names": names})
    return spans


if __name__ == "__main__":
    out, files = Path(sys.argv[1]), sys.argv[2:]
    out.write_text(json.dumps(joined(files) if files else listed(), indent=None) + "\n")
