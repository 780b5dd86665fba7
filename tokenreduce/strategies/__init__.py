"""The methods that ship with tokenreduce, one file each; every file of this folder is imported."""

from tokenreduce.registry import import_modules

import_modules(__name__)
