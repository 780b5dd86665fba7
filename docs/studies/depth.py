"""Where the model still needs its visual tokens: some of them dropped once, at one layer.

    python docs/studies/depth.py

Every layer by itself, 50, 25, 10 and 0 per cent kept, by attention and at random (PyramidDrop,
arXiv 2410.17247, figure 1). Positions stay for both, which then differ only in what they choose.
Writes docs/results/depth.json.
"""

from common import Study

import tokenreduce as tr

KEEPS = (0.5, 0.25, 0.1, 0.0)

if __name__ == "__main__":
    study = Study("depth", __doc__)
    layers = range(study.depth)
    for keep in KEEPS:
        for layer in layers:
            # nothing is chosen where nothing stays
            names = ("pyramid_drop", "random") if keep else ("random",)
            for name in names:
                if study.given.smoke and (layer % 4 or keep == 0.1):
                    continue
                schedule = tr.Single(layer=layer, keep=keep)
                study.cell(f"{name} {keep:g} from layer {layer}", name, schedule, positions="keep")
