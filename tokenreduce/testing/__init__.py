"""The law suite: what must hold for every strategy, on tiny models that need no download.

A method's author runs it from their own tests:

    import pytest
    from tokenreduce.testing import laws

    @pytest.mark.parametrize("case", laws.cases("norm"), ids=str)
    def test_laws(case):
        case.check(Norm())

`models` has the tiny models, `batches` the inputs, `oracle` the references, `laws` the laws, and
`matrix` says which strategy is tried on what.
"""
