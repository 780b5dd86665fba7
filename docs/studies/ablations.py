"""What a pyramid's own choices matter without training: ratio, stages, positions.

    python docs/studies/ablations.py

Writes docs/results/ablations.json.
"""

from common import Study

import tokenreduce as tr

RATIOS = (0.4, 0.5, 0.6)
STAGES = (3, 4, 5)

if __name__ == "__main__":
    study = Study("ablations", __doc__)
    for stages in STAGES:
        for ratio in RATIOS:
            for positions in ("keep", "compact"):
                schedule = tr.Pyramid(stages=stages, ratio=ratio)
                label = f"{stages} stages, ratio {ratio:g}, {positions}"
                study.cell(label, "pyramid_drop", schedule, positions=positions)
