"""Single checkpoints in the original layout."""
from pathlib import Path
from typing import Any
from visionpeft.errors import BaseModelError
def load_checkpoint(path: Path, *, tokenizer: Any = None, prediction_type: str | None = None) -> Any:
    raise BaseModelError(f"{path}: single checkpoints are not read yet.")
