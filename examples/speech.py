"""Speech: adapt the embedded Whisper to a speaker, transcribe with one adapter and with two blended, take it away."""

from pathlib import Path

import visionpeft
from visionpeft.config import config_from
from visionpeft.inference.take_away import export_peft
from visionpeft.inference.transcribe import transcribe
from visionpeft.inference.transcribe_model import open_ears
from visionpeft.inference.transcribe_windows import Recording
from visionpeft.models.base import ASSETS

speech = ASSETS / "speech"  # an audiofolder of the package: sound files, and metadata.csv with their words


def trained(name: str, seed: int) -> Path:
    """Train for a few steps, to see how it goes; `visionpeft demo transcribe` trains on to the end."""
    settings = {
        "task": "transcribe",
        "base": "visionpeft/small-whisper",
        "data": {"source": {"format": "audiofolder", "folder": str(speech)}, "split": {"sentence": "off"}},
        "adapter": {"method": "lora", "rank": 4, "targets": ["attention.q", "attention.v"]},
        "train": {"steps": 3, "batch_size": 4, "learning_rate": 1e-3, "evaluate_every": 0, "seed": seed},
        "output": f"speech/{name}",
    }
    result = visionpeft.train(config_from(settings, name=name))
    if result is None or result.adapter is None:
        raise SystemExit("another process of several wrote the adapter")
    print(name, {key: round(value, 3) for key, value in result.metrics.items() if key.endswith("wer_marks")})
    return result.adapter


one, two = trained("one", seed=0), trained("two", seed=1)

# Each call chooses its adapters; several are blended live, by their weights.
recording = Recording(speech / "test" / "nicolas-00.flac")
for adapters in ([], [(one, 1.0)], [(one, 0.5), (two, 0.5)]):
    (segments,) = transcribe([recording], open_ears(adapters, "visionpeft/small-whisper"))
    print(" ".join(segment.text for segment in segments))

# A folder of peft's, read back and compared, and by vLLM's rules; export_speech makes the merged folders.
print(export_peft(one, Path("speech/peft")))
