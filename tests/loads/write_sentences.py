"""Write the sentences that the report of models/minilm.yaml was measured on, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from models.data.pydoc import pydoc_sentences

SENTENCES = 512

if __name__ == "__main__":
    found = pydoc_sentences("validation")[:SENTENCES]
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")
