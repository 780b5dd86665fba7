"""The compact contract suite: what a release of transformers must do for this package.

    python scripts/check_versions.py 5.10        # lays a release over this environment, runs it
    pytest tests/contract -m contract            # on the release that is installed

It is small, so that every release can be run through it: four strategies that differ in evidence
and in the kind of their plans, on every main family, the recorded generations, and the command
of the README. It imports nothing of transformers by name that a family alone needs, so that it
runs on releases on which other test modules cannot be imported.
"""
