"""Options that mean nothing are refused in one line that names them."""

from __future__ import annotations

import re

import pytest
from omegaconf import OmegaConf

from tokenreduce.config import compose, plain
from tokenreduce.evaluation.options import COUNTS, SHARES
from tokenreduce.evaluation.options import check as check_options


def check(config):
    check_options(plain(config.task), config.max_new_tokens)


def test_what_ships_is_allowed(tmp_path):
    check(compose(["task=evaluate", f"task.folder={tmp_path}/a/b"]))
    check(compose(["task=evaluate", "task.timed=0", "task.baselines=[]", "task.limit=null"]))


@pytest.fixture(scope="module")
def shipped():
    return compose(["task=evaluate"])


@pytest.mark.parametrize(
    "word",
    [
        *(f"task.{name}={value}" for name in COUNTS for value in ("-1", "2.5", "many", "true")),
        *(f"task.{name}={value}" for name in SHARES for value in ("0", "5", "-1", "abc", "null")),
        *("task.batch=0", "task.seeds=0", "task.runs=0", "task.limit=0", "task.limit=all"),
        *("task.flops=0", "task.flops=1.5", "task.flops=half"),
        *("max_new_tokens=0", "max_new_tokens=2.5", "task.margin=.nan", "task.progress=maybe"),
        *("task.baselines=null", "task.baselines=random", "task.baselines=[fastv]"),
        *("task.changes=null", "task.changes=shift", "task.changes=[blur]"),
    ],
)
def test_what_cannot_be_is_refused(word, shipped):
    option = word.partition("=")[0].removeprefix("task.")
    told = "perturbation 'blur'" if "blur" in word else option
    with pytest.raises((ValueError, KeyError), match=re.escape(told)) as error:
        check(OmegaConf.merge(shipped, OmegaConf.from_dotlist([word])))
    assert "\n" not in str(error.value)


def test_a_folder_for_answers_is_no_file(tmp_path):
    (tmp_path / "file").write_text("x")
    for name in ("file", "file/below"):
        with pytest.raises(ValueError, match=r"task\.folder=.*is a file"):
            check(compose(["task=evaluate", f"task.folder={tmp_path / name}"]))
