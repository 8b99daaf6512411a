"""Shows routing collapse: `python -m tests.bench.collapse`, two short runs with and without what prevents it.

Both train the same experts from the same start on the same texts. One has the load-balancing loss and noisy top-k, the
other has neither. Writes the experts' shares over the steps as a picture, and prints what came of the last steps.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt

from services.model_worker.training.report import ROUTING
from tests.support.real_model import MODEL_PATH

_COLOURS: Final = ("#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#7f7f7f")
_WIDTH: Final = 420
_HEIGHT: Final = 220
_MARGIN: Final = 40
_WINDOW: Final = 5
"""Steps that one point of the picture is the mean of."""
_RUNS: Final = {
    "with load balancing and noise": ["--balance", "0.1", "--noise", "0.3"],
    "without": ["--balance", "0", "--noise", "0", "--z", "0"],
}


def main() -> int:
    """Train twice, draw, and say whether one collapsed and the other did not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=MODEL_PATH)
    parser.add_argument("--data", type=Path, default=Path("build/training"), help="as `make training-data` writes it")
    parser.add_argument("--examples", type=int, default=70, help="texts that are learned, the first of the data's")
    parser.add_argument("--steps", type=int, default=70)
    parser.add_argument("--first-layer", type=int, default=27)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/collapse.svg"))
    arguments = parser.parse_args()
    shares: dict[str, npt.NDArray[np.float64]] = {}
    with TemporaryDirectory(prefix="espalier-collapse-") as directory:
        texts = Path(directory) / "texts"
        texts.mkdir()
        for name, count in (("train.jsonl", arguments.examples), ("validation.jsonl", arguments.examples // 10)):
            with (arguments.data / name).open(encoding="utf-8") as lines:
                (texts / name).write_text("".join(islice(lines, count)), encoding="utf-8")
        for name, flags in _RUNS.items():
            out = Path(directory) / name.split()[0]
            command = [sys.executable, "-m", "services.model_worker.training", "train", "--epochs", "100"]
            command += ["--base", str(arguments.base), "--data", str(texts), "--out", str(out)]
            command += ["--hidden", str(Path(directory) / "hidden"), "--steps", str(arguments.steps), *flags]
            command += ["--retention", "0"]  # what the base knows is not at stake, and its predictions take time
            command += ["--first-layer", str(arguments.first_layer), "--learning-rate", str(arguments.learning_rate)]
            subprocess.run(command, check=True)
            shares[name] = read_shares(out / ROUTING)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(svg(shares), encoding="utf-8")
    for name, found in shares.items():
        last = found[-10:].mean(axis=0) * found.shape[2]  # (L, E), in fair shares
        balance = (last**2).mean(axis=1)
        print(
            f"{name}: in the last 10 steps the smallest share of an expert is {last.min():.2f} and the largest "
            f"{last.max():.2f} times the fair one; E times the sum of squared shares, by layer: {balance.round(2)}"
        )
    print(f"the picture is {arguments.out}")
    return 0


def read_shares(file: Path) -> npt.NDArray[np.float64]:
    """Read `(steps, L, E)`: an expert's share of the choices, by step and layer."""
    with file.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    layers = sorted({int(row["layer"]) for row in rows})
    names = [name for name in rows[0] if name.startswith("share_")]
    values = np.array([[float(row[name]) for name in names] for row in rows])
    return values.reshape(-1, len(layers), len(names))


def svg(shares: dict[str, npt.NDArray[np.float64]]) -> str:
    """Draw the shares of each run's last layer, one band for each expert, the runs side by side."""
    panels = [
        f'<g transform="translate({index * _WIDTH} 0)">{_panel(name, found[:, -1])}</g>'
        for index, (name, found) in enumerate(shares.items())
    ]
    width = _WIDTH * len(shares)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HEIGHT}" viewBox="0 0 {width} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="11"><title>Shares of experts over training steps</title>'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(panels)}</svg>\n'
    )


def _panel(title: str, found: npt.NDArray[np.float64]) -> str:
    kernel = np.ones(_WINDOW) / _WINDOW
    smooth = np.stack([np.convolve(expert, kernel, mode="valid") for expert in found.T], axis=1)  # (S, E)
    edges = np.concatenate([np.zeros((len(smooth), 1)), smooth.cumsum(axis=1)], axis=1)
    right, bottom = _WIDTH - 14, _HEIGHT - 34

    def place(step: int, share: float) -> str:
        x = _MARGIN + (right - _MARGIN) * step / max(1, len(smooth) - 1)
        return f"{x:.1f},{bottom - (bottom - 28) * share:.1f}"

    bands = []
    for expert in range(found.shape[1]):
        lower = [place(step, edges[step, expert]) for step in range(len(smooth))]
        upper = [place(step, edges[step, expert + 1]) for step in range(len(smooth))]
        bands.append(
            f'<polygon points="{" ".join(lower + upper[::-1])}" fill="{_COLOURS[expert % len(_COLOURS)]}" '
            f'stroke="white" stroke-width="0.5"><title>expert {expert}</title></polygon>'
        )
    return (
        f'<text x="{_MARGIN}" y="18" font-weight="bold">{escape(title)}</text>{"".join(bands)}'
        f'<text x="{_MARGIN - 4}" y="{bottom}" text-anchor="end">0</text>'
        f'<text x="{_MARGIN - 4}" y="32" text-anchor="end">1</text>'
        f'<text x="{_MARGIN}" y="{bottom + 16}">step 0</text>'
        f'<text x="{right}" y="{bottom + 16}" text-anchor="end">{len(found)}</text>'
    )


if __name__ == "__main__":
    sys.exit(main())
