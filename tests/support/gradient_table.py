"""Write docs/gradients.md: which graphs have gradients.

Usage: ``python tests/support/gradient_table.py docs/gradients.md``
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from gradient_collection import Finding, findings

_HEADER = """# Gradients of other exporters' graphs

Made by `make gradients`. The methods `auto` and `gauss-newton` go by gradients of a model's outputs
at its linear layers. This is where there are some: graphs of one construct each between two linear
layers (`tests/support/stranger_graphs.py`), and small models as exporters write them, each run on
five samples in batches of two. Where there are none, `auto` measures sensitivity instead, factors
with `asvd`, and says so in the plan's notes; whoever asks for gradients by name gets the reason as
an error.

"""

_TABLE = """
| graph | exporter | gradients | what stands in | why |
|:---|:---|:---|:---|:---|
"""


def main() -> None:
    """Write the table to the path that the command line names."""
    found = list(findings())
    have = sum(not finding.reason for finding in found)
    rows = "\n".join(map(_row, found))
    text = f"{_HEADER}{have} of {len(found)} graphs have gradients.\n{_TABLE}{rows}\n"
    Path(sys.argv[1]).write_text(text, encoding="utf-8")


def _row(finding: Finding) -> str:
    if finding.reason:
        inside = re.search(r"\((.*)\)", finding.reason)
        why = inside.group(1) if inside else finding.reason
        verdict = f"no | measured sensitivity | {why.replace('|', '/')}"
    else:
        rest = "" if finding.reached == finding.sites else "asvd at the others"
        verdict = f"{finding.reached} of {finding.sites} layers | {rest} | "
    return f"| {finding.graph} | {finding.exporter} | {verdict} |"


if __name__ == "__main__":
    main()
