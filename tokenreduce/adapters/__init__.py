"""The model families that ship with tokenreduce; every file of this folder is imported."""

from tokenreduce.registry import import_modules

import_modules(__name__)
